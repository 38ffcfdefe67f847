"""Which function answers which of torch's operations.

An operation that has no function of its own is made of others: one in place of the one that makes a new tensor, one with `out=`
likewise, and the rest by torch's own decompositions. What is left has no way to run on the server, and says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch._ops import OpOverload

Handler = Callable[..., Any]
aten = torch.ops.aten


class Handlers(dict[OpOverload, Handler]):
    """Functions by operation."""

    def __init__(self) -> None:
        super().__init__()
        #: Operations that have functions of their own, not made of others.
        self.direct: set[OpOverload] = set()

    def add(self, *names: str) -> Callable[[Handler], Handler]:
        """Registers a function for operations by name: `add.Tensor`. A name that this torch does not have is left out."""

        def register(handler: Handler) -> Handler:
            for name in names:
                packet, _, overload = name.partition(".")
                found = getattr(getattr(aten, packet, None), overload or "default", None)
                if found is not None:
                    self[found] = handler
                    self.direct.add(found)
            return handler

        return register

    def find(self, func: OpOverload) -> Handler:
        """The function for an operation that has none of its own yet.

        Raises NotImplementedError, which names the operation and what works instead.
        """
        handler = self._in_place(func) or self._out(func) or self._decomposed(func)
        if handler is None:
            handler = self._refuse(func)
        self[func] = handler
        return handler

    def _functional(self, func: OpOverload, ending: str) -> OpOverload | None:
        name = func._schema.name.removeprefix("aten::").removesuffix(ending)
        packet = getattr(aten, name, None)
        if packet is None or not func._schema.name.startswith("aten::"):
            return None
        wanted = [a.name for a in func._schema.arguments if not a.is_out]
        for overload in packet.overloads():
            found = getattr(packet, overload)
            if [a.name for a in found._schema.arguments] == wanted and not found._schema.is_mutable:
                return found if found is not func else None
        return None

    def _in_place(self, func: OpOverload) -> Handler | None:
        if not func._schema.name.endswith("_") or not func._schema.is_mutable:
            return None
        functional = self._functional(func, "_")
        if functional is None:
            return None

        def in_place(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(self, RemoteTensor):
                raise _mixed(func, self)
            value = functional(self, *args, **kwargs)
            if not torch.can_cast(value.dtype, self.dtype):
                kind = str(value.dtype).removeprefix("torch.")
                raise RuntimeError(f"result type {_NAMES.get(kind, kind)} can't be cast to the desired output type {self.dtype}")
            return write(self, node_of(value))

        return in_place

    def _out(self, func: OpOverload) -> Handler | None:
        outs = [a.name for a in func._schema.arguments if a.is_out]
        if not outs:
            return None
        functional = self._functional(func, "")
        if functional is None:
            return None

        def into(*args: Any, **kwargs: Any) -> Any:
            targets = [kwargs.pop(name) for name in outs]
            values = functional(*args, **kwargs)
            for target, value in zip(targets, values if len(outs) > 1 else [values]):
                if not isinstance(target, RemoteTensor):
                    raise _mixed(func, target)
                if target.shape != value.shape:
                    raise NotImplementedError(
                        f"remote_accelerator does not resize a tensor given as out= ({list(target.shape)} to "
                        f"{list(value.shape)}): give one of that shape, or none"
                    )
                if not torch.can_cast(value.dtype, target.dtype):
                    raise RuntimeError(f"result type {value.dtype} can't be cast to the desired output type {target.dtype}")
                write(target, node_of(value))
            return tuple(targets) if len(outs) > 1 else targets[0]

        return into

    def _decomposed(self, func: OpOverload) -> Handler | None:
        if func._schema.is_mutable:
            return None
        from torch._decomp import decomposition_table

        made_of = decomposition_table.get(func)
        if made_of is not None and func not in _NOT_AS_TORCH_DOES:
            return made_of
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            return func.decompose
        return None

    @staticmethod
    def _refuse(func: OpOverload) -> Handler:
        def refused(*_: Any, **__: Any) -> Any:
            name = str(func)
            nearest = "docs/ops.md lists what works; x.cpu() brings a tensor to where torch itself can do it"
            raise NotImplementedError(f"remote_accelerator has no {name}: {nearest}")

        return refused


_NAMES = {"float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long", "int32": "Int", "uint8": "Byte", "bool": "Bool"}
# Decompositions that ask for values, or make types that the server has not.
_NOT_AS_TORCH_DOES: set[OpOverload] = set()


def _mixed(func: OpOverload, target: Any) -> RuntimeError:
    return RuntimeError(
        f"{func}: Expected all tensors to be on the same device, but a tensor on {getattr(target, 'device', 'cpu')} was to take "
        "what is computed on remote_accelerator: move one of them with .to()"
    )


HANDLERS = Handlers()

# At the end: tensors look their operations up here.
from .tensor import RemoteTensor, node_of, write  # noqa: E402
