"""Elementwise operations."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from .. import build
from ..dispatch import HANDLERS, widened
from ..dtypes import NAMES, is_float, name_of
from ..node import Node
from ..operands import both, device_among, floating, operand, promoted, scalar
from ..tensor import RemoteTensor, node_of, wrap

# ---- one operand

#: Operations of floats, which make floats of integers first: torch's name and the graph's.
_FLOAT = {
    "sigmoid": "sigmoid", "tanh": "tanh", "exp": "exp", "log": "log", "sqrt": "sqrt", "sin": "sin", "cos": "cos", "tan": "tan",
    "asin": "asin", "acos": "acos", "atan": "atan", "sinh": "sinh", "cosh": "cosh", "asinh": "asinh", "acosh": "acosh",
    "atanh": "atanh", "erf": "erf", "erfc": "erfc", "erfinv": "erfinv", "lgamma": "lgamma", "digamma": "digamma", "expm1": "expm1",
    "log1p": "log1p", "log2": "log2", "log10": "log10", "exp2": "exp2", "rsqrt": "rsqrt", "reciprocal": "reciprocal", "i0": "i0",
}  # fmt: skip


def _float_unary(name: str, op: str) -> None:
    @HANDLERS.add(f"{name}.default")
    def apply(self: RemoteTensor) -> RemoteTensor:
        x = node_of(self)
        return wrap(build.unary(op, build.cast(x, floating(x.dtype))))


for _name, _op in _FLOAT.items():
    _float_unary(_name, _op)


def _rounding(name: str) -> None:
    @HANDLERS.add(f"{name}.default")
    def apply(self: RemoteTensor) -> RemoteTensor:
        x = node_of(self)
        return wrap(build.unary(name, x) if is_float(x.dtype) else x)


for _name in ("floor", "ceil", "round", "trunc"):
    _rounding(_name)


@HANDLERS.add("round.decimals")
def round_to(self: RemoteTensor, *, decimals: int) -> RemoteTensor:
    x = node_of(self)
    if not is_float(x.dtype):
        return wrap(x)
    ten = scalar(10.0 ** abs(decimals), x.dtype, x.device)
    if decimals >= 0:
        return wrap(build.div(build.unary("round", build.mul(x, ten)), ten))
    return wrap(build.mul(build.unary("round", build.div(x, ten)), ten))


@HANDLERS.add("relu.default")
def relu(self: RemoteTensor) -> RemoteTensor:
    x = node_of(self)
    if x.dtype == "bool":
        raise RuntimeError("Boolean inputs not supported for relu")
    return wrap(build.unary("relu", x) if is_float(x.dtype) else build.binary("maximum", x, scalar(0, x.dtype, x.device)))


@HANDLERS.add("silu.default")
def silu(self: RemoteTensor) -> RemoteTensor:
    return wrap(build.unary("silu", node_of(self)))


@HANDLERS.add("gelu.default")
def gelu(self: RemoteTensor, *, approximate: str = "none") -> RemoteTensor:
    return wrap(build.gelu(node_of(self), approximate == "tanh"))


@HANDLERS.add("neg.default")
def neg(self: RemoteTensor) -> RemoteTensor:
    x = node_of(self)
    if x.dtype == "bool":
        raise RuntimeError("Negation, the `-` operator, on a bool tensor is not supported. If you are trying to invert a mask, use the `~` or `logical_not()` operator instead.")
    return wrap(build.sub(scalar(0, x.dtype, x.device), x) if x.dtype == "u8" else build.unary("neg", x))


@HANDLERS.add("abs.default")
def absolute(self: RemoteTensor) -> RemoteTensor:
    x = node_of(self)
    return wrap(x if x.dtype in ("u8", "bool") else build.unary("abs", x))


@HANDLERS.add("sign.default", "sgn.default")
def sign(self: RemoteTensor) -> RemoteTensor:
    x = node_of(self)
    return wrap(x if x.dtype == "bool" else build.unary("sign", x))


@HANDLERS.add("bitwise_not.default")
def bitwise_not(self: RemoteTensor) -> RemoteTensor:
    x = node_of(self)
    if is_float(x.dtype):
        raise RuntimeError(f"\"bitwise_not_cpu\" not implemented for '{self.dtype}'")
    return wrap(build.unary("not", x))


@HANDLERS.add("logical_not.default")
def logical_not(self: RemoteTensor) -> RemoteTensor:
    return wrap(build.unary("not", truth(node_of(self))))


def truth(x: Node) -> Node:
    """Whether each element is something else than zero."""
    return x if x.dtype == "bool" else build.compare("ne", x, scalar(0, x.dtype, x.device))


def _class_of_float(name: str, op: str, of_integers: bool) -> None:
    @HANDLERS.add(f"{name}.default")
    def apply(self: RemoteTensor) -> RemoteTensor:
        x = node_of(self)
        if is_float(x.dtype):
            return wrap(build.unary(op, x, "bool"))
        return wrap(build.full(x.shape, of_integers, "bool", x.device))


for _name, _op, _of in (("isnan", "is_nan", False), ("isinf", "is_inf", False), ("isfinite", "is_finite", True)):
    _class_of_float(_name, _op, _of)


@HANDLERS.add("signbit.default")
def signbit(self: RemoteTensor) -> RemoteTensor:
    x = node_of(self)
    if not is_float(x.dtype):
        return wrap(build.compare("lt", x, scalar(0, x.dtype, x.device)))
    # A zero and a NaN have a sign, too.
    signed = build.binary("copysign", scalar(1, x.dtype, x.device), x)
    return wrap(build.compare("lt", signed, scalar(0, x.dtype, x.device)))


@HANDLERS.add("angle.default")
def angle(self: RemoteTensor) -> RemoteTensor:
    x = build.cast(node_of(self), floating(NAMES[self.dtype]))
    turned = build.where(build.compare("lt", x, scalar(0, x.dtype, x.device)), scalar(math.pi, x.dtype, x.device), scalar(0, x.dtype, x.device))
    return wrap(build.where(build.unary("is_nan", x, "bool"), x, turned))


@HANDLERS.add("polygamma.default")
def polygamma(n: int, self: RemoteTensor) -> RemoteTensor:
    if n:
        raise NotImplementedError(f"remote_accelerator has no polygamma of order {n}: it has digamma, which is order 0; x.cpu() brings it here")
    x = node_of(self)
    return wrap(build.unary("digamma", build.cast(x, floating(x.dtype))))


@HANDLERS.add("frexp.Tensor")
def frexp(self: RemoteTensor) -> Any:
    x = node_of(self)
    if not is_float(x.dtype):
        raise RuntimeError(f"torch.frexp() only supports floating-point dtypes, got {self.dtype}")
    wide = build.cast(x, "f32")
    constant: Callable[[float], Node] = lambda v: scalar(v, "f32", x.device)  # noqa: E731
    plain = build.binary("bit_and", build.unary("is_finite", wide, "bool"), build.compare("ne", wide, constant(0)))
    magnitude = build.where(plain, build.unary("abs", wide), constant(1))
    power = build.add(build.unary("floor", build.unary("log2", magnitude)), constant(1))
    # In two steps, for a number so small that one power is too large; then what rounding of the logarithm has missed.
    half = build.unary("floor", build.mul(power, constant(0.5)))
    rest = build.sub(power, half)
    scaled = build.mul(build.mul(wide, build.unary("exp2", build.unary("neg", half))), build.unary("exp2", build.unary("neg", rest)))
    size = build.unary("abs", scaled)
    over, under = build.compare("ge", size, constant(1)), build.compare("lt", size, constant(0.5))
    scaled = build.where(over, build.mul(scaled, constant(0.5)), build.where(under, build.add(scaled, scaled), scaled))
    power = build.add(power, build.where(over, constant(1), build.where(under, constant(-1), constant(0))))
    mantissa = build.cast(build.where(plain, scaled, wide), x.dtype)
    exponent = build.cast(build.where(plain, power, constant(0)), "i32")
    return torch.return_types.frexp((wrap(mantissa), wrap(exponent)))


# ---- two operands


@HANDLERS.add("add.Tensor", "add.Scalar")
def add(self: Any, other: Any, alpha: Any = 1) -> RemoteTensor:
    a, b = both(self, other)
    if alpha != 1:
        if not is_float(a.dtype) and isinstance(alpha, float):
            raise RuntimeError("For integral input tensors, argument alpha must not be a floating point number.")
        b = build.binary("bit_and" if b.dtype == "bool" else "mul", b, scalar(alpha, b.dtype, b.device))
    return wrap(build.binary("bit_or", a, b) if a.dtype == "bool" else build.add(a, b))


@HANDLERS.add("sub.Tensor", "sub.Scalar")
def sub(self: Any, other: Any, alpha: Any = 1) -> RemoteTensor:
    a, b = both(self, other)
    if a.dtype == "bool":
        raise RuntimeError("Subtraction, the `-` operator, with a bool tensor is not supported. If you are trying to invert a mask, use the `~` or `logical_not()` operator instead.")
    return wrap(build.sub(a, b if alpha == 1 else build.mul(b, scalar(alpha, b.dtype, b.device))))


@HANDLERS.add("rsub.Tensor", "rsub.Scalar")
def rsub(self: Any, other: Any, alpha: Any = 1) -> RemoteTensor:
    return sub(other, self, alpha) if alpha == 1 else sub(other, mul(self, alpha))


@HANDLERS.add("mul.Tensor", "mul.Scalar")
def mul(self: Any, other: Any) -> RemoteTensor:
    a, b = both(self, other)
    return wrap(build.binary("bit_and", a, b) if a.dtype == "bool" else build.mul(a, b))


@HANDLERS.add("div.Tensor", "div.Scalar")
def div(self: Any, other: Any) -> RemoteTensor:
    a, b = both(self, other, floating(promoted(self, other)))
    return wrap(build.div(a, b))


@HANDLERS.add("div.Tensor_mode", "div.Scalar_mode")
def div_mode(self: Any, other: Any, *, rounding_mode: str | None) -> RemoteTensor:
    if rounding_mode is None:
        return div(self, other)
    a, b = both(self, other)
    if rounding_mode == "floor":
        return wrap(build.binary("floor_divide", a, b))
    made = build.div(a, b)
    return wrap(build.unary("trunc", made) if is_float(made.dtype) else made)


@HANDLERS.add("floor_divide.default", "floor_divide.Scalar")
def floor_divide(self: Any, other: Any) -> RemoteTensor:
    return wrap(build.binary("floor_divide", *both(self, other)))


def _binary(op: str, *names: str, as_float: bool = False) -> None:
    @HANDLERS.add(*names)
    def apply(self: Any, other: Any) -> RemoteTensor:
        dtype = promoted(self, other)
        return wrap(build.binary(op, *both(self, other, floating(dtype) if as_float else dtype)))


_binary("fmod", "fmod.Tensor", "fmod.Scalar")
_binary("remainder", "remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor")
_binary("atan2", "atan2.default", as_float=True)
_binary("hypot", "hypot.default")
_binary("copysign", "copysign.Tensor", "copysign.Scalar", as_float=True)
_binary("nextafter", "nextafter.default")
_binary("shift_left", "bitwise_left_shift.Tensor", "bitwise_left_shift.Tensor_Scalar", "bitwise_left_shift.Scalar_Tensor", "__lshift__.Tensor", "__lshift__.Scalar")
_binary("shift_right", "bitwise_right_shift.Tensor", "bitwise_right_shift.Tensor_Scalar", "bitwise_right_shift.Scalar_Tensor", "__rshift__.Tensor", "__rshift__.Scalar")


def _bitwise(op: str, name: str) -> None:
    @HANDLERS.add(f"bitwise_{name}.Tensor", f"bitwise_{name}.Scalar", f"bitwise_{name}.Scalar_Tensor", f"__{name}__.Tensor", f"__{name}__.Scalar")
    def apply(self: Any, other: Any) -> RemoteTensor:
        dtype = promoted(self, other)
        if is_float(dtype):
            raise RuntimeError(f"\"bitwise_{name}_cpu\" not implemented for 'Float'")
        return wrap(build.binary(op, *both(self, other, dtype)))

    @HANDLERS.add(f"logical_{name}.default")
    def logical(self: Any, other: Any) -> RemoteTensor:
        device = device_among((self, other))
        a, b = (truth(operand(v, name_of(v.dtype), device)) for v in (self, other))
        return wrap(build.binary(op, a, b))


for _name in ("and", "or", "xor"):
    _bitwise(f"bit_{_name}", _name)


def _compare(op: str) -> None:
    @HANDLERS.add(f"{op}.Tensor", f"{op}.Scalar")
    def apply(self: Any, other: Any) -> RemoteTensor:
        return wrap(build.compare(op, *both(self, other)))


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    _compare(_name)


def _extreme(op: str, name: str) -> None:
    @HANDLERS.add(f"{name}imum.default")
    def apply(self: Any, other: Any) -> RemoteTensor:
        a, b = both(self, other)
        if a.dtype == "bool":
            return wrap(build.binary("bit_or" if name == "max" else "bit_and", a, b))
        return wrap(build.binary(op, a, b))

    @HANDLERS.add(f"f{name}.default")
    def ignoring_nan(self: Any, other: Any) -> RemoteTensor:
        a, b = both(self, other)
        if not is_float(a.dtype):
            return apply(self, other)
        made = build.binary(op, a, b)
        made = build.where(build.unary("is_nan", a, "bool"), b, made)
        return wrap(build.where(build.unary("is_nan", b, "bool"), a, made))


_extreme("maximum", "max")
_extreme("minimum", "min")


@HANDLERS.add("pow.Tensor_Scalar")
def pow_by(self: RemoteTensor, exponent: Any) -> RemoteTensor:
    dtype = promoted(self, exponent)
    x = build.cast(node_of(self), dtype)
    if is_float(dtype):
        if exponent == 2:
            return wrap(build.mul(x, x))
        if exponent == 3:
            return wrap(build.mul(build.mul(x, x), x))
        if exponent == 0.5:
            return wrap(build.unary("sqrt", x))
    elif exponent < 0:
        raise RuntimeError("Integers to negative integer powers are not allowed.")
    return wrap(build.binary("pow", x, scalar(exponent, dtype, x.device)))


@HANDLERS.add("pow.Tensor_Tensor", "pow.Scalar")
def power(self: Any, exponent: Any) -> RemoteTensor:
    return wrap(build.binary("pow", *both(self, exponent)))


@HANDLERS.add("where.self")
def where(condition: RemoteTensor, self: Any, other: Any) -> RemoteTensor:
    device = device_among((condition, self, other))
    chosen = operand(condition, name_of(condition.dtype), device)
    if chosen.dtype not in ("bool", "u8"):
        raise RuntimeError(f"expected condition to be a boolean tensor, but got a tensor with dtype {condition.dtype}")
    dtype = promoted(self, other)
    return wrap(build.where(truth(chosen), operand(self, dtype, device), operand(other, dtype, device)))


@HANDLERS.add("masked_fill.Scalar", "masked_fill.Tensor")
def masked_fill(self: RemoteTensor, mask: RemoteTensor, value: Any) -> RemoteTensor:
    device = device_among((self, mask))
    x, chosen = node_of(self), operand(mask, name_of(mask.dtype), device)
    if chosen.dtype != "bool":
        raise RuntimeError("masked_fill_ only supports boolean masks, but got mask with dtype " + str(mask.dtype))
    if isinstance(value, torch.Tensor) and value.dim():
        raise RuntimeError(f"masked_fill_ only supports a 0-dimensional value tensor, but got tensor with {value.dim()} dimension(s).")
    return wrap(build.where(chosen, operand(value, x.dtype, device), x))


# ---- several of them


@HANDLERS.add("isclose.default")
def isclose(self: RemoteTensor, other: RemoteTensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> RemoteTensor:
    if self.dtype != other.dtype:
        raise RuntimeError(f"{self.dtype} did not match {other.dtype}")
    a, b = both(self, other)
    near = build.compare("eq", a, b)
    if equal_nan and is_float(a.dtype):
        near = build.binary("bit_or", near, build.binary("bit_and", build.unary("is_nan", a, "bool"), build.unary("is_nan", b, "bool")))
    if rtol == 0 and atol == 0:
        return wrap(near)
    x, y = (v if is_float(v.dtype) else build.cast(v, "f32") for v in (a, b))
    allowed = build.add(scalar(atol, x.dtype, x.device), build.unary("abs", build.mul(scalar(rtol, x.dtype, x.device), y)))
    off = build.unary("abs", build.sub(x, y))
    within = build.binary("bit_and", build.unary("is_finite", off, "bool"), build.compare("le", off, allowed))
    return wrap(build.binary("bit_or", near, within))


@HANDLERS.add("allclose.default")
def allclose(self: RemoteTensor, other: RemoteTensor, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False) -> bool:
    return bool(isclose(self, other, rtol, atol, equal_nan).all())


@HANDLERS.add("clamp.default")
def clamp(self: RemoteTensor, min: Any = None, max: Any = None) -> RemoteTensor:  # noqa: A002: torch's names
    bounds = [v for v in (min, max) if v is not None]
    if not bounds:
        raise RuntimeError("torch.clamp: At least one of 'min' or 'max' must not be None")
    dtype = promoted(self, *bounds)
    x = build.cast(node_of(self), dtype)
    if min is not None:
        x = build.binary("maximum", x, scalar(min, dtype, x.device))
    if max is not None:
        x = build.binary("minimum", x, scalar(max, dtype, x.device))
    return wrap(x)


@HANDLERS.add("clamp.Tensor")
def clamp_by(self: RemoteTensor, min: Any = None, max: Any = None) -> RemoteTensor:  # noqa: A002: torch's names
    bounds = [v for v in (min, max) if v is not None]
    if not bounds:
        raise RuntimeError("torch.clamp: At least one of 'min' or 'max' must not be None")
    dtype, device = promoted(self, *bounds), device_among((self, *bounds))
    x = build.cast(node_of(self), dtype)
    if min is not None:
        x = build.binary("maximum", x, operand(min, dtype, device))
    if max is not None:
        x = build.binary("minimum", x, operand(max, dtype, device))
    return wrap(x)


@HANDLERS.add("clamp_min.default", "clamp_min.Tensor")
def clamp_min(self: RemoteTensor, min: Any) -> RemoteTensor:  # noqa: A002: torch's names
    return wrap(build.binary("maximum", *both(self, min)))


@HANDLERS.add("clamp_max.default", "clamp_max.Tensor")
def clamp_max(self: RemoteTensor, max: Any) -> RemoteTensor:  # noqa: A002: torch's names
    return wrap(build.binary("minimum", *both(self, max)))


@HANDLERS.add("lerp.Scalar", "lerp.Tensor")
@widened
def lerp(self: RemoteTensor, end: RemoteTensor, weight: Any) -> RemoteTensor:
    a, b = both(self, end)
    w = operand(weight, a.dtype, a.device)
    # As torch does it: from the nearer end.
    near = build.add(a, build.mul(w, build.sub(b, a)))
    far = build.sub(b, build.mul(build.sub(b, a), build.sub(scalar(1, w.dtype, w.device), w)))
    half = build.compare("lt", build.unary("abs", w), scalar(0.5, w.dtype, w.device))
    return wrap(build.where(half, near, far))


@HANDLERS.add("addcmul.default")
@widened
def addcmul(self: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> RemoteTensor:
    dtype, device = promoted(self, tensor1, tensor2), device_among((self, tensor1, tensor2))
    a, b, c = (operand(v, dtype, device) for v in (self, tensor1, tensor2))
    made = build.mul(b, c)
    return wrap(build.add(a, made if value == 1 else build.mul(made, scalar(value, dtype, device))))


@HANDLERS.add("addcdiv.default")
@widened
def addcdiv(self: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> RemoteTensor:
    dtype, device = promoted(self, tensor1, tensor2), device_among((self, tensor1, tensor2))
    if not is_float(dtype):
        raise RuntimeError("Integer division with addcdiv is no longer supported")
    a, b, c = (operand(v, dtype, device) for v in (self, tensor1, tensor2))
    made = build.div(b if value == 1 else build.mul(b, scalar(value, dtype, device)), c)
    return wrap(build.add(a, made))


@HANDLERS.add("nan_to_num.default")
def nan_to_num(self: RemoteTensor, nan: float | None = None, posinf: float | None = None, neginf: float | None = None) -> RemoteTensor:
    x = node_of(self)
    if not is_float(x.dtype):
        return wrap(x)
    limits, infinity = torch.finfo(self.dtype), scalar(math.inf, x.dtype, x.device)
    constant: Callable[[float], Node] = lambda v: scalar(v, x.dtype, x.device)  # noqa: E731
    made = build.where(build.unary("is_nan", x, "bool"), constant(0.0 if nan is None else nan), x)
    made = build.where(build.compare("eq", x, infinity), constant(limits.max if posinf is None else posinf), made)
    low = build.compare("eq", x, constant(-math.inf))
    return wrap(build.where(low, constant(limits.min if neginf is None else neginf), made))


@HANDLERS.add("logit.default")
def logit(self: RemoteTensor, eps: float | None = None) -> RemoteTensor:
    x = build.cast(node_of(self), floating(NAMES[self.dtype]))
    one = scalar(1, x.dtype, x.device)
    if eps is not None:
        low, high = scalar(eps, x.dtype, x.device), scalar(1 - eps, x.dtype, x.device)
        # Of bounds that cross the lower one counts.
        x = build.where(build.compare("lt", x, low), low, build.where(build.compare("gt", x, high), high, x))
    return wrap(build.unary("log", build.div(x, build.sub(one, x))))
