"""What each of torch's operations is made of. A module a family; each registers its operations when it is imported."""

from . import autocast, creation, grid, index, layers, loading, order, pieces, pointwise, pool, products, random, reduction, scatter, transfer, views
from . import prims  # isort: skip: other names of what those register

__all__ = [
    "autocast", "creation", "grid", "index", "layers", "loading", "order", "pieces", "pointwise", "pool", "prims", "products", "random", "reduction",
    "scatter", "transfer", "views",
]  # fmt: skip
