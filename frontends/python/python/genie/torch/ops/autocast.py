"""`torch.autocast("remote_accelerator")`: products in a half type, what is delicate in float32, the rest as its operands are."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._pytree import tree_map

from ..dispatch import LIBRARY, aten
from ..tensor import RemoteTensor

_HALF = (
    "linear", "mm", "addmm", "bmm", "baddbmm", "addbmm", "mv", "addmv", "matmul", "conv1d", "conv2d", "conv3d", "convolution",
    "conv_transpose1d", "conv_transpose2d.input", "scaled_dot_product_attention",
)  # fmt: skip
_SINGLE = (
    "softmax.int", "log_softmax.int", "layer_norm", "group_norm", "native_layer_norm", "exp", "log", "pow.Tensor_Scalar", "rsqrt",
    "cross_entropy_loss", "nll_loss", "mse_loss", "cosine_similarity", "cumsum", "cumprod", "norm.Scalar", "cdist", "softplus",
)  # fmt: skip
_OTHERS: Any = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
_KEY = "AutocastPrivateUse1"
_KEYS = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _KEY))


def _register(name: str, half: bool) -> None:
    packet, _, overload = name.partition(".")
    func = getattr(getattr(aten, packet), overload or "default")

    def cast(*args: Any, **kwargs: Any) -> Any:
        dtype = torch.get_autocast_dtype("remote_accelerator") if half else torch.float32

        def convert(value: Any) -> Any:
            return value.to(dtype) if isinstance(value, RemoteTensor) and value.dtype.is_floating_point else value

        with torch._C._ExcludeDispatchKeyGuard(_KEYS):
            return func(*tree_map(convert, args), **tree_map(convert, kwargs))

    LIBRARY.impl(name, cast, _KEY)


_OTHERS.fallback(torch.library.fallthrough_kernel, _KEY)
for _name in _HALF:
    _register(_name, True)
for _name in _SINGLE:
    _register(_name, False)
