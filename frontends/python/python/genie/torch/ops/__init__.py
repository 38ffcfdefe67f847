"""What each of torch's operations is made of. A module a family; each registers its operations when it is imported."""

from . import creation, index, layers, pointwise, products, random, reduction, transfer, views

__all__ = ["creation", "index", "layers", "pointwise", "products", "random", "reduction", "transfer", "views"]
