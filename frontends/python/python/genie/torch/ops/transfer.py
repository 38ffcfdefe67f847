"""To the server, from it, and between types and devices."""

from __future__ import annotations

from typing import Any

import torch

from .. import build, node, run
from ..dispatch import HANDLERS, LIBRARY, aten
from ..dtypes import NAMES, TYPES, name_of
from ..node import Node
from ..tensor import NO_AUTOGRAD, RemoteTensor, node_of, wrap, write

#: A tensor of this process up to this size travels with the run that first reads it.
SMALL_BYTES = 4 << 10


def upload(source: torch.Tensor, dtype: str, device: int) -> Node:
    """The values of a tensor of this process."""
    # A gradient on its way to what was captured. torch would go on in threads of the device's own, where an error ends the process.
    backward = torch._C._current_autograd_node()
    if backward is not None and backward.name() == "ToCopyBackward0":
        raise NotImplementedError(NO_AUTOGRAD)
    if source.layout != torch.strided:
        raise NotImplementedError(f"remote_accelerator has no {source.layout} tensors: use .to_dense()")
    if source.numel() == 0:
        return build.empty(tuple(source.shape), dtype, device)
    values = source.detach().to(device="cpu", dtype=TYPES[dtype]).contiguous()
    # As bytes; of a single element torch does not mind the stride, but it does here.
    data = values.as_strided((values.numel(),), (1,)).view(torch.uint8).numpy()
    weight = isinstance(source, torch.nn.Parameter)
    if data.nbytes <= SMALL_BYTES and not weight:
        return node.host(data.tobytes(), tuple(source.shape), dtype, device)
    made = node.host(data, tuple(source.shape), dtype, device)
    run.runner().put(made, weight)
    if weight:
        made.residency = "weight"
    return made


def download(value: Node) -> torch.Tensor:
    """The values, in a tensor of this process."""
    dtype = TYPES[value.dtype]
    if 0 in value.shape:
        return torch.empty(value.shape, dtype=dtype)
    (data,) = run.realise([value], fetch=True)
    if isinstance(data, bytes):
        data = bytearray(data)
    return torch.frombuffer(data, dtype=dtype).reshape(value.shape)


@HANDLERS.add("_to_copy.default")
def to_copy(
    self: torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    layout: Any = None,
    device: Any = None,
    pin_memory: Any = None,
    non_blocking: bool = False,
    memory_format: Any = None,
) -> torch.Tensor:
    if isinstance(self, RemoteTensor):
        value = node_of(self)
        if dtype is not None and dtype != self.dtype and (device is None or torch.device(device).type == "remote_accelerator"):
            value = build.cast(value, name_of(dtype))
        target = self.device if device is None else torch.device(device)
        if target.type != "remote_accelerator":
            here = download(value)
            return here.to(device=target, dtype=dtype or here.dtype)
        index = self.device.index if target.index is None else target.index
        return wrap(value if index == value.device else across(value, index))
    target = torch.device(device)
    return wrap(upload(self, name_of(dtype or self.dtype), target.index or 0))


def across(value: Node, device: int) -> Node:
    """The same tensor on another device of the server: it does not pass this process."""
    if value.op in ("empty", "host"):
        made = Node(value.op, (), (), value.shape, value.dtype, device)
        made.value = value.value
        return made
    run.realise([value])
    return node.resident(run.runner().backend.copy(value.value, device), value.shape, value.dtype, device)


@HANDLERS.add("copy_.default")
def copy_in(self: torch.Tensor, src: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    if not isinstance(self, RemoteTensor):
        return self.copy_(download(node_of(src)))  # type: ignore[arg-type]
    if isinstance(src, RemoteTensor):
        value, index = node_of(src), self._storage.node.device
        return write(self, value if value.device == index else across(value, index))
    value = upload(src, NAMES[self.dtype], self._storage.node.device)
    if isinstance(self, torch.nn.Parameter) and value.op == "resident":
        value.residency = "weight"
    return write(self, value)


def _copy_from(self: torch.Tensor, dst: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    return copy_in(dst, self)


# What torch itself copies to a tensor that it has just made does not pass the tensor's own dispatch.
LIBRARY.impl("_copy_from", _copy_from, "PrivateUse1")


#: How `memoryview` calls the element types that it has.
_CODES = {"f32": "f", "i64": "q", "i32": "i", "u8": "B", "bool": "?"}


# torch.tensor([x[0], x[1]]) reads them where no tensor is asked.
@HANDLERS.whole("_local_scalar_dense.default")
def item(self: RemoteTensor) -> Any:
    value = node_of(self)
    code = _CODES.get(value.dtype)
    if code is None:
        return download(value).item()
    # Numbers are asked for in loops: a tensor of one would take longer to make than to read.
    (data,) = run.realise([value], fetch=True)
    return memoryview(data).cast("B").cast(code)[0]  # type: ignore[call-overload]


@HANDLERS.add("equal.default")
def equal(self: RemoteTensor, other: RemoteTensor) -> bool:
    if self.shape != other.shape:
        return False
    return bool((self == other).all())


@HANDLERS.add("clone.default")
def clone(self: RemoteTensor, *, memory_format: Any = None) -> RemoteTensor:
    # Nodes do not change: two storages may have one.
    return wrap(node_of(self))


@HANDLERS.add("lift_fresh.default", "lift.default", "detach_.default", "requires_grad_.default")
def itself(self: RemoteTensor, *_: Any) -> RemoteTensor:
    return self


@HANDLERS.add("is_pinned.default")
def is_pinned(self: RemoteTensor, device: Any = None) -> bool:
    return False


@HANDLERS.add("is_same_size.default")
def is_same_size(self: RemoteTensor, other: torch.Tensor) -> bool:
    return self.shape == other.shape


def _pinned(self: torch.Tensor, device: Any = None) -> torch.Tensor:
    if torch.cuda.is_available() and (device is None or torch.device(device).type == "cuda"):
        return aten._pin_memory.default._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, self, torch.device("cuda"))
    # This device's transfers need no pinned memory; whoever asks for some, as DataLoader does, gets a copy.
    return self.clone()


LIBRARY.impl("_pin_memory", _pinned, "CPU")
LIBRARY.impl("_pin_memory", lambda self, device=None: self, "PrivateUse1")
HANDLERS.add("_pin_memory.default")(lambda self, device=None: self)
