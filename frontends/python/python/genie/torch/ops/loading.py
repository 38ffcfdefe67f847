"""`torch.load(file, map_location="remote_accelerator:0")`: a file's storages go to the server as its tensors are put together."""

from __future__ import annotations

from typing import Any

import torch

from ..device import NAME, current_device
from ..dispatch import HANDLERS
from ..dtypes import TYPES, name_of
from ..storage import Storage, Strided
from ..tensor import RemoteTensor, adopt
from .transfer import upload

#: Before torch's own way for PrivateUse1 (23), which needs an allocator of C++, and ends the process where there is none.
_PRIORITY = 17


class Loaded(torch.UntypedStorage):
    """The bytes of a file in this process, whose tensors are to be on a device of the server."""

    _index: int
    #: What is on the server, by the type that tensors see in the bytes: tensors that shared memory do so there.
    _held: dict[torch.dtype, Storage]

    @property
    def device(self) -> torch.device:
        """Where tensors of it are made."""
        return torch.device(NAME, self._index)


def restore(storage: Any, location: str) -> Any:
    """What `torch.load` asks of every kind of device: the storage there, or None where another kind is meant."""
    if not location.startswith(NAME) or torch.device(location).type != NAME:
        return None
    if getattr(storage, "_torch_load_uninitialized", False):
        raise NotImplementedError(
            f"remote_accelerator cannot load a file in PyTorch's form from before 1.6: torch.load(file, map_location='cpu'), then "
            f".to('{location}')"
        )
    index = torch.device(location).index
    storage.__class__ = Loaded
    storage._index, storage._held = current_device() if index is None else index, {}
    return storage


def _no_tag(_: Any) -> None:
    # Tensors of the server are saved with their values, as tensors of the CPU.
    return None


torch.serialization.register_package(_PRIORITY, _no_tag, restore)


@HANDLERS.add("set_.source_Storage_storage_offset")
def look_at(self: RemoteTensor, source: Any, offset: int, size: Any, stride: Any = ()) -> RemoteTensor:
    if not isinstance(source, Loaded):
        raise NotImplementedError("remote_accelerator has no storages of this process: use .to() on a tensor of it")
    # torch says whether a file's sizes and strides are within its bytes.
    here = torch.empty(0, dtype=self.dtype).set_(source, offset, size, stride)
    shape, kind = tuple(here.shape), name_of(self.dtype)
    held = source._held.get(self.dtype)
    if held is None:
        whole = torch.empty(0, dtype=self.dtype).set_(source)
        if here.is_contiguous() and here.numel() == whole.numel():
            whole = here
        # Named by its content, as parameters are: a second start sends none of it.
        named = torch.nn.Parameter(whole, False) if self.is_floating_point() else whole
        held = source._held[self.dtype] = Storage(upload(named, kind, source._index))
    base = held.node
    as_it_is = base.shape == shape and here.is_contiguous()
    chain = () if as_it_is else (Strided(shape, tuple(here.stride()), offset),)
    return adopt(self, RemoteTensor(held, chain, shape, TYPES[kind], base.device, tuple(here.stride()), offset))
