"""Which function answers which of torch's operations.

An operation that has no function of its own is made of others: one in place of the one that makes a new tensor, one with `out=`
likewise, and the rest by torch's own decompositions. What is left has no way to run on the server, and says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch._ops import OpOverload

from . import build
from .dtypes import NAMES

Handler = Callable[..., Any]
AnyHandler = TypeVar("AnyHandler", bound=Handler)
aten = torch.ops.aten
#: Functions for where no tensor of ours is there to be asked, or torch does not ask it.
LIBRARY: Any = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]


class Handlers(dict[OpOverload, Handler]):
    """Functions by operation."""

    def __init__(self) -> None:
        super().__init__()
        #: Operations that have functions of their own, not made of others.
        self.direct: set[OpOverload] = set()

    def add(self, *names: str) -> Callable[[AnyHandler], AnyHandler]:
        """Registers a function for operations by name: `add.Tensor`. A name that this torch does not have is left out."""

        def register(handler: AnyHandler) -> AnyHandler:
            for name in names:
                packet, _, overload = name.partition(".")
                found = getattr(getattr(aten, packet, None), overload or "default", None)
                if found is not None:
                    self[found] = handler
                    self.direct.add(found)
            return handler

        return register

    def whole(self, *names: str) -> Callable[[AnyHandler], AnyHandler]:
        """As `add`, for operations that torch would take apart before it asks anybody."""

        def register(handler: AnyHandler) -> AnyHandler:
            for name in names:
                LIBRARY.impl(name.removesuffix(".default"), handler, "PrivateUse1")
            return self.add(*names)(handler)

        return register

    def of(self, func: OpOverload) -> Handler:
        """The function for an operation."""
        return self.get(func) or self.find(func)

    def find(self, func: OpOverload) -> Handler:
        """The function for an operation that has none of its own yet.

        Raises NotImplementedError, which names the operation and what works instead.
        """
        handler = self._in_place(func) or self._out(func) or self._decomposed(func) or self._foreach(func)
        if handler is None:
            handler = self._refuse(func)
        self[func] = handler
        return handler

    def _functional(self, func: OpOverload, ending: str, beside: frozenset[str] = frozenset()) -> OpOverload | None:
        """What makes a new tensor of the same arguments, those of these names apart."""
        name = func._schema.name.removeprefix("aten::").removesuffix(ending)
        packet = getattr(aten, name, None)
        if packet is None or not func._schema.name.startswith("aten::"):
            return None
        wanted = [(a.name, str(a.type)) for a in func._schema.arguments if not a.is_out]
        for overload in packet.overloads():
            found = getattr(packet, overload)
            taken = [(a.name, str(a.type)) for a in found._schema.arguments if a.name not in beside]
            if found is not func and not found._schema.is_mutable and taken == wanted:
                return found  # type: ignore[no-any-return]
        return None

    def _in_place(self, func: OpOverload) -> Handler | None:
        if not func._schema.name.endswith("_") or not func._schema.is_mutable or func._schema.name.startswith(_LISTS):
            return None
        functional = self._functional(func, "_")
        if functional is None:
            return None
        handler_of = self.of

        def in_place(self: Any, *args: Any, **kwargs: Any) -> Any:
            if not isinstance(self, RemoteTensor):
                raise _mixed(func, self)
            value = handler_of(functional)(self, *args, **kwargs)
            if value.dtype != self.dtype and not torch.can_cast(value.dtype, self.dtype):
                kind = str(value.dtype).removeprefix("torch.")
                raise RuntimeError(f"result type {_NAMES.get(kind, kind)} can't be cast to the desired output type {self.dtype}")
            return write(self, node_of(value))

        return in_place

    def _out(self, func: OpOverload) -> Handler | None:
        outs = [a.name for a in func._schema.arguments if a.is_out]
        if not outs:
            return None
        functional = self._functional(func, "")
        made = functional or self._functional(func, "", _OPTIONS)
        if made is None:
            return None

        def into(*args: Any, **kwargs: Any) -> Any:
            targets = [kwargs.pop(name) for name in outs]
            if functional is None:
                kwargs.update(dtype=targets[0].dtype, device=targets[0].device)
            values = self.of(made)(*args, **kwargs)
            for target, value in zip(targets, values if len(outs) > 1 else [values]):
                if not isinstance(target, RemoteTensor):
                    raise _mixed(func, target)
                if not torch.can_cast(value.dtype, target.dtype):
                    raise RuntimeError(f"result type {value.dtype} can't be cast to the desired output type {target.dtype}")
                if target.shape == value.shape:
                    write(target, node_of(value))
                    continue
                if target.numel():
                    warnings.warn(
                        f"An output with one or more elements was resized since it had shape {list(target.shape)}, which does not match "
                        f"the required output shape {list(value.shape)}. Call t.resize_(0) before it is reused.",
                        stacklevel=3,
                    )
                adopt(target, wrap(build.cast(node_of(value), NAMES[target.dtype])))
            return tuple(targets) if len(outs) > 1 else targets[0]

        return into

    def _decomposed(self, func: OpOverload) -> Handler | None:
        if func._schema.is_mutable:
            return None
        from torch._decomp import decomposition_table

        made_of = decomposition_table.get(func)
        if made_of is not None:
            return widened(made_of) if func._schema.name in _ROUNDED_ONCE else made_of
        if torch._C._dispatch_has_kernel_for_dispatch_key(func._name, "CompositeImplicitAutograd"):
            return func.decompose
        return None

    @staticmethod
    def _foreach(func: OpOverload) -> Handler | None:
        # A list at a time; torch's own way for devices that have nothing better goes through the list.
        if not func._schema.name.startswith(_LISTS):
            return None
        slow = torch._C.DispatchKey.CompositeExplicitAutograd
        if not torch._C._dispatch_has_kernel_for_dispatch_key(func._name, "CompositeExplicitAutograd"):
            return None
        return lambda *args, **kwargs: func._op_dk(slow, *args, **kwargs)

    @staticmethod
    def _refuse(func: OpOverload) -> Handler:
        name = func._schema.name.rpartition("::")[2]
        nearest = next((hint for words, hint in _NEAREST if any(word in name for word in words)), _OTHERWISE)

        def refused(*_: Any, **__: Any) -> Any:
            raise NotImplementedError(f"remote_accelerator has no {func}: {nearest}")

        return refused


#: What works where an operation does not, by words in the operation's name; the first that fits is said.
_NEAREST: tuple[tuple[tuple[str, ...], str], ...] = (
    (("backward", "_grad"), "there is no autograd here; train where the parameters are local, and run the model under torch.no_grad()"),
    (("fft", "stft"), "torch.fft works on x.cpu(), and .to('remote_accelerator:0') brings real results back"),
    (("complex", "polar", "_conj", "real", "imag"), "there are no complex numbers here; keep real and imaginary parts in two tensors"),
    (("sparse", "csr", "csc", "bsr", "coo"), "there are no sparse tensors here; use dense ones (.to_dense()), or a mask"),
    (("quantize", "fake_quant", "q_"), "quantised tensors are torch's own; use bfloat16, or a server's model with quantised weights"),
    (
        ("linalg", "cholesky", "lu_", "_qr", "geqrf", "svd", "eig", "lstsq", "triangular", "inverse", "det", "ormqr", "matrix_exp"),
        "matrix products, norms and torch.linalg.vector_norm work here; factorise x.cpu() and bring the result back",
    ),
    (("nested",), "there are no nested tensors here; use padded ones with a mask (TransformerEncoder: enable_nested_tensor=False)"),
    (("bessel", "polynomial", "igamma", "zeta", "erfcx", "ndtri", "airy"), "of the special functions erf, erfinv, lgamma, digamma and i0 work"),
    (("_loss",), "cross_entropy, nll_loss, mse_loss and the other elementwise losses work; compute this one on x.cpu()"),
    (("upsample", "grid_sampler"), "interpolate by nearest, linear, bilinear or bicubic without antialias works, and so does grid_sample"),
    (("pool",), "max, average and adaptive pools work"),
)
_OTHERWISE = "docs/ops.md lists what works; x.cpu() brings a tensor to where torch itself can do it"
#: What tensors from nothing are told beside their contents.
_OPTIONS = frozenset(("dtype", "layout", "device", "pin_memory"))
#: Operations that do many tensors at once.
_LISTS = "aten::_foreach_"
_NAMES = {"float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "int64": "Long", "int32": "Int", "uint8": "Byte", "bool": "Bool"}
#: Operations whose decompositions would round to a half type at every step.
_ROUNDED_ONCE = frozenset(
    f"aten::{name}" for name in (
        "linalg_cross", "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d", "logaddexp", "logaddexp2",
        "smooth_l1_loss", "huber_loss", "mse_loss", "nll_loss_forward", "nll_loss2d_forward", "softplus", "mish", "log_sigmoid_forward",
        "hardswish", "hardsigmoid", "elu", "celu", "selu", "glu", "renorm", "sinc", "special_entr", "xlogy", "_prelu_kernel",
        "special_xlog1py", "logit", "linalg_vector_norm", "norm", "dist",
    )
)  # fmt: skip


def widened(handler: Handler) -> Handler:
    """The same in float32 where the operands are of a half type, rounded to that once, at the end."""

    def apply(*args: Any, **kwargs: Any) -> Any:
        narrow: list[str] = []

        def widen(value: Any) -> Any:
            if isinstance(value, RemoteTensor) and (dtype := value._storage.node.dtype) in ("f16", "bf16"):
                narrow.append(dtype)
                return wrap(build.cast(node_of(value), "f32"))
            return value

        args, kwargs = tuple(map(widen, args)), {name: widen(value) for name, value in kwargs.items()}
        made = handler(*args, **kwargs)
        if not narrow:
            return made

        def back(value: Any) -> Any:
            if isinstance(value, RemoteTensor) and value._storage.node.dtype == "f32":
                return wrap(build.cast(node_of(value), narrow[0]))
            return value

        return tuple(map(back, made)) if isinstance(made, tuple) else back(made)

    return apply



def _mixed(func: OpOverload, target: Any) -> RuntimeError:
    return RuntimeError(
        f"{func}: Expected all tensors to be on the same device, but a tensor on {getattr(target, 'device', 'cpu')} was to take "
        "what is computed on remote_accelerator: move one of them with .to()"
    )


HANDLERS = Handlers()

# At the end: tensors look their operations up here.
from .tensor import RemoteTensor, adopt, node_of, wrap, write  # noqa: E402
