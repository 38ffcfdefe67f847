"""The tensor that `remote_accelerator` makes."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_any

from . import build, storage
from .dtypes import NAMES, TYPES
from .node import Node

NO_AUTOGRAD = (
    "remote_accelerator has no autograd (backward): train where the parameters are local, and move the model "
    "with .to('remote_accelerator:0') to run it; torch.no_grad() says so to torch"
)
#: Operations that wait for one another at the most. A loop that asks for nothing would fill this process with what it captured.
MOST_DEPTH = 1 << 14

_DEVICES: dict[int, torch.device] = {}


def device_of(index: int) -> torch.device:
    """`remote_accelerator:INDEX`."""
    device = _DEVICES.get(index)
    if device is None:
        device = _DEVICES[index] = torch.device("remote_accelerator", index)
    return device


class Memory(torch.UntypedStorage):
    """Memory of a server: whoever saves files asks where it begins, to see which tensors share it."""

    _address = 0

    def data_ptr(self) -> int:
        """A number that no other memory of the server has."""
        return self._address


class RemoteTensor(torch.Tensor):
    """A tensor that lives on a server, or will: what made it runs when its values are asked for.

    It has the sizes, strides and type of any tensor; the memory is the server's.
    """

    _storage: storage.Storage
    _chain: storage.Chain
    _seen: tuple[int, Node] | None

    @staticmethod
    def __new__(
        cls,
        held: storage.Storage,
        chain: storage.Chain,
        size: tuple[int, ...],
        dtype: torch.dtype,
        device: int,
        stride: tuple[int, ...] | None = None,
        offset: int = 0,
    ) -> RemoteTensor:
        if stride is None:
            self = torch.Tensor._make_wrapper_subclass(cls, size, dtype=dtype, device=device_of(device))
        else:
            self = torch.Tensor._make_wrapper_subclass(
                cls, size, strides=stride, storage_offset=offset, dtype=dtype, device=device_of(device)
            )
        self._storage = held
        self._chain = chain
        self._seen = None
        return self

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        handler = HANDLERS.get(func) or HANDLERS.find(func)
        return handler(*args, **kwargs) if kwargs else handler(*args)

    # ---- what has no operation of its own

    def materialize(self) -> RemoteTensor:
        """Computes it, and leaves it on the server."""
        from .run import realise

        realise([node_of(self)])
        return self

    def numpy(self, *, force: bool = False) -> Any:
        """Its values, once they are computed, as a NumPy array of this process."""
        return self.detach().cpu().numpy(force=force)

    def tolist(self) -> Any:
        """Its values, once they are computed, as Python numbers."""
        return self.detach().cpu().tolist()

    def __array__(self, dtype: Any = None) -> Any:
        here = self.detach().cpu().numpy()
        return here if dtype is None else here.astype(dtype)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        text = repr(self.detach().cpu())
        grad = ", requires_grad=True" if self.requires_grad else ""
        what = "Parameter containing:\n" if isinstance(self, torch.nn.Parameter) else ""
        return f"{what}{text[:-1]}, device='{self.device}'{grad})"

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.dim() == 0 else repr(self), spec)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) in memo:
            return memo[id(self)]
        copy = self.detach().clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            copy = torch.nn.Parameter(copy, self.requires_grad)
        memo[id(self)] = copy
        return copy

    def __copy__(self) -> Any:
        # Another tensor on the same memory, as of any tensor: what it is copied by otherwise is a file's.
        made = self.detach().requires_grad_(self.requires_grad)
        made = torch.nn.Parameter(made, self.requires_grad) if isinstance(self, torch.nn.Parameter) else made
        return made

    def __reduce_ex__(self, protocol: Any) -> Any:
        # A file has the values: it loads on a machine that knows no server, under weights_only, too.
        here = self.detach().cpu()
        if isinstance(self, torch.nn.Parameter):
            here = torch.nn.Parameter(here, self.requires_grad)
        return here.requires_grad_(self.requires_grad).__reduce_ex__(protocol)  # type: ignore[no-untyped-call]

    def untyped_storage(self) -> Any:
        """What tensors that share memory share. Its address is nobody's: it says which have it in common."""
        made = torch.Tensor.untyped_storage(self)
        made.__class__ = Memory
        made._address = self._storage.address
        return made

    def _typed_storage(self) -> Any:
        # Whoever asks for it makes more of it, which torch cannot on a device without C++: DataLoader's workers do.
        raise NotImplementedError(
            "remote_accelerator has no memory that processes could share: make batches of CPU tensors in DataLoader's workers, "
            "and bring them there with .to(), or leave num_workers at 0"
        )

    def data_ptr(self) -> int:
        """As its storage's: nobody can read there."""
        return self._storage.address + self.storage_offset() * self.element_size()

    def backward(self, *_: Any, **__: Any) -> None:
        """Not there.

        Raises NotImplementedError.
        """
        raise NotImplementedError(NO_AUTOGRAD)

    @property
    def data(self) -> Any:
        """The same values without what autograd knows of them."""
        return self.detach()

    @data.setter
    def data(self, new: Any) -> None:
        if not isinstance(new, RemoteTensor):
            raise RuntimeError(f"data on {self.device} cannot become data on {new.device}: make a new tensor with .to()")
        adopt(self, new)


def node_of(tensor: RemoteTensor) -> Node:
    """What a tensor shows now."""
    chain, held = tensor._chain, tensor._storage
    if not chain:
        return held.node
    seen = tensor._seen
    if seen is not None and seen[0] == held.version:
        return seen[1]
    node = storage.read(held, chain)
    tensor._seen = held.version, node
    return node


def wrap(node: Node) -> RemoteTensor:
    """A new tensor with storage of its own."""
    if node.depth > MOST_DEPTH:
        from .run import bound

        bound(node, MOST_DEPTH)
    return RemoteTensor(storage.Storage(node), (), node.shape, TYPES[node.dtype], node.device)


def view_of(
    base: RemoteTensor, size: tuple[int, ...], stride: tuple[int, ...], offset: int, steps: tuple[storage.Step, ...]
) -> RemoteTensor:
    """A view of a tensor's storage, that begins `offset` elements after the tensor."""
    held = base._storage
    node = held.node
    return RemoteTensor(held, base._chain + steps, size, TYPES[node.dtype], node.device, stride, base.storage_offset() + offset)


def adopt(tensor: RemoteTensor, new: RemoteTensor) -> RemoteTensor:
    """Makes a tensor look at what another one looks at, with its sizes."""
    torch.Tensor.data.__set__(tensor, new)  # type: ignore[attr-defined]
    tensor._storage, tensor._chain, tensor._seen = new._storage, new._chain, None
    return tensor


def shadow(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without memory that has the sizes and strides: torch itself says what views make of them."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def write(tensor: RemoteTensor, node: Node) -> RemoteTensor:
    """Replaces what a tensor shows, in place: cast and broadcast as torch's operations in place do."""
    node = build.cast(node, NAMES[tensor.dtype])
    shape = tuple(tensor.shape)
    if node.shape != shape:
        if build.broadcast_shapes(node.shape, shape) != shape:
            raise RuntimeError(
                f"output with shape {list(shape)} doesn't match the broadcast shape {list(node.shape)}"
            )
        node = build.expand(node, shape)
    storage.write(tensor._storage, tensor._chain, node)
    return tensor


def is_remote(values: Any) -> bool:
    """Whether a tensor on the server is among them."""
    return tree_any(lambda value: isinstance(value, RemoteTensor), values)


# At the end: its operations make tensors.
from .dispatch import HANDLERS  # noqa: E402
