"""Random numbers, drawn on the server from the counter-based generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from .. import build
from ..dispatch import HANDLERS
from ..dtypes import NAMES, is_float, name_of
from ..node import Node
from ..operands import operand, scalar
from ..random import GENERATOR
from ..tensor import RemoteTensor, node_of, wrap, write
from .creation import factory, index_of, kind_of


def _no_generator(generator: Any) -> None:
    if generator is not None:
        raise NotImplementedError("remote_accelerator has one generator, seeded by torch.manual_seed: leave generator= out")


def _uniform(shape: Sequence[int], dtype: str, device: int) -> Node:
    return GENERATOR.draw("uniform", tuple(shape), dtype, device)


def _normal(shape: Sequence[int], dtype: str, device: int) -> Node:
    return GENERATOR.draw("normal", tuple(shape), dtype, device)


@factory("rand")
def rand(size: Sequence[int], *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> RemoteTensor:
    return wrap(_uniform(size, kind_of(dtype), index_of(device)))


@factory("randn")
def randn(size: Sequence[int], *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> RemoteTensor:
    return wrap(_normal(size, kind_of(dtype), index_of(device)))


def _integers(low: int, high: int, shape: Sequence[int], dtype: str, device: int) -> Node:
    if high <= low:
        raise RuntimeError(f"random_ expects 'from' to be less than 'to', but got from={low} >= to={high}")
    bits = GENERATOR.draw("bits", tuple(shape), "i64", device)
    made = build.binary("remainder", bits, scalar(high - low, "i64", device)) if bits.op != "empty" else bits
    return build.cast(build.add(made, scalar(low, "i64", device)), dtype)


@factory("randint")
def randint(high: int, size: Sequence[int], *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> RemoteTensor:
    return randint_from(0, high, size, dtype=dtype, device=device)


@factory("randint.low")
def randint_from(low: int, high: int, size: Sequence[int], *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> RemoteTensor:
    return wrap(_integers(low, high, size, name_of(dtype or torch.int64), index_of(device)))


@factory("randperm")
def randperm(n: int, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None) -> RemoteTensor:
    index = index_of(device)
    bits = GENERATOR.draw("bits", (n,), "i64", index)
    return wrap(build.cast(build.argsort(bits, 0, False), name_of(dtype or torch.int64)))


def _like(draw: Callable[..., Node]) -> Callable[..., RemoteTensor]:
    def like(
        self: RemoteTensor, *, dtype: Any = None, layout: Any = None, device: Any = None, pin_memory: Any = None, memory_format: Any = None
    ) -> RemoteTensor:
        return wrap(draw(self.shape, name_of(dtype or self.dtype), self._storage.node.device))

    return like


HANDLERS.add("rand_like.default")(_like(_uniform))
HANDLERS.add("randn_like.default")(_like(_normal))


@HANDLERS.add("randint_like.default")
def randint_like(self: RemoteTensor, high: int, **options: Any) -> RemoteTensor:
    return _like(lambda shape, dtype, device: _integers(0, high, shape, dtype, device))(self, **options)


@HANDLERS.add("randint_like.low_dtype")
def randint_like_from(self: RemoteTensor, low: int, high: int, **options: Any) -> RemoteTensor:
    return _like(lambda shape, dtype, device: _integers(low, high, shape, dtype, device))(self, **options)


@HANDLERS.add("uniform_.default")
def uniform_in(self: RemoteTensor, from_: float = 0.0, to: float = 1.0, *, generator: Any = None) -> RemoteTensor:
    _no_generator(generator)
    x = _uniform(self.shape, NAMES[self.dtype], self._storage.node.device)
    return write(self, build.add(build.mul(x, scalar(to - from_, x.dtype, x.device)), scalar(from_, x.dtype, x.device)))


@HANDLERS.add("normal_.default")
def normal_in(self: RemoteTensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> RemoteTensor:
    _no_generator(generator)
    x = _normal(self.shape, NAMES[self.dtype], self._storage.node.device)
    if std != 1:
        x = build.mul(x, scalar(std, x.dtype, x.device))
    return write(self, x if mean == 0 else build.add(x, scalar(mean, x.dtype, x.device)))


@HANDLERS.add("normal.Tensor_Tensor", "normal.Tensor_float", "normal.float_Tensor")
def normal(mean: Any, std: Any = 1.0, *, generator: Any = None) -> RemoteTensor:
    _no_generator(generator)
    like = next(v for v in (mean, std) if isinstance(v, RemoteTensor))
    dtype, device = NAMES[like.dtype], like._storage.node.device
    shape = build.broadcast_shapes(*(tuple(v.shape) for v in (mean, std) if isinstance(v, torch.Tensor)))
    x = _normal(shape, dtype, device)
    return wrap(build.add(build.mul(x, operand(std, dtype, device)), operand(mean, dtype, device)))


@HANDLERS.add("random_.default")
def random_in(self: RemoteTensor, *, generator: Any = None) -> RemoteTensor:
    most = {"f32": 1 << 24, "f16": 1 << 11, "bf16": 1 << 8, "i64": (1 << 63) - 1, "i32": (1 << 31) - 1, "u8": 256, "bool": 2}
    return random_from(self, 0, most[NAMES[self.dtype]], generator=generator)


@HANDLERS.add("random_.to")
def random_to(self: RemoteTensor, to: int, *, generator: Any = None) -> RemoteTensor:
    return random_from(self, 0, to, generator=generator)


@HANDLERS.add("random_.from")
def random_from(self: RemoteTensor, from_: int, to: int, *, generator: Any = None) -> RemoteTensor:
    _no_generator(generator)
    return write(self, _integers(from_, to, self.shape, NAMES[self.dtype], self._storage.node.device))


def _drawn(p: Node, shape: Sequence[int]) -> Node:
    return build.compare("lt", _uniform(shape, "f32", p.device), build.cast(p, "f32"))


@HANDLERS.add("bernoulli.default")
def bernoulli(self: RemoteTensor, *, generator: Any = None) -> RemoteTensor:
    _no_generator(generator)
    x = node_of(self)
    return wrap(build.cast(_drawn(x, x.shape), x.dtype))


@HANDLERS.add("bernoulli.p")
def bernoulli_by(self: RemoteTensor, p: float, *, generator: Any = None) -> RemoteTensor:
    _no_generator(generator)
    x = node_of(self)
    return wrap(build.cast(_drawn(scalar(p, "f32", x.device), x.shape), x.dtype))


@HANDLERS.add("bernoulli_.float", "bernoulli_.Tensor")
def bernoulli_in(self: RemoteTensor, p: Any = 0.5, *, generator: Any = None) -> RemoteTensor:
    _no_generator(generator)
    device = self._storage.node.device
    return write(self, _drawn(operand(p, "f32", device), self.shape))


@HANDLERS.add("exponential_.default")
def exponential_in(self: RemoteTensor, lambd: float = 1.0, *, generator: Any = None) -> RemoteTensor:
    _no_generator(generator)
    x = _uniform(self.shape, "f32", self._storage.node.device)
    return write(self, build.div(build.unary("neg", build.unary("log1p", build.unary("neg", x))), scalar(lambd, "f32", x.device)))


@HANDLERS.add("native_dropout.default")
def native_dropout(input: RemoteTensor, p: float, train: bool | None) -> tuple[RemoteTensor, RemoteTensor]:  # noqa: A002: torch's name
    x = node_of(input)
    if not train or p == 0:
        return wrap(x), wrap(build.full(x.shape, True, "bool", x.device))
    kept = _drawn(scalar(1 - p, "f32", x.device), x.shape)
    factor = 0.0 if p == 1 else 1 / (1 - p)
    made = build.where(kept, build.mul(x, scalar(factor, x.dtype, x.device)), scalar(0, x.dtype, x.device))
    return wrap(made), wrap(kept)


@HANDLERS.add("rrelu_with_noise.default")
def rrelu_with_noise(
    self: RemoteTensor, noise: RemoteTensor, lower: float = 0.125, upper: float = 1 / 3, training: bool = False, generator: Any = None
) -> RemoteTensor:
    _no_generator(generator)
    x = node_of(self)
    slope = scalar((lower + upper) / 2, x.dtype, x.device)
    if training:
        drawn = build.mul(_uniform(x.shape, x.dtype, x.device), scalar(upper - lower, x.dtype, x.device))
        slope = build.add(drawn, scalar(lower, x.dtype, x.device))
    return wrap(build.where(build.compare("lt", x, scalar(0, x.dtype, x.device)), build.mul(x, slope), x))


@HANDLERS.add("multinomial.default")
def multinomial(self: RemoteTensor, num_samples: int, replacement: bool = False, *, generator: Any = None) -> RemoteTensor:
    _no_generator(generator)
    x = node_of(self)
    if not is_float(x.dtype):
        raise RuntimeError(f"multinomial only supports floating-point dtypes for input, got: {self.dtype}")
    wide = build.cast(x, "f32")
    if not replacement:
        # The largest of u^(1/w) are draws without replacement (Efraimidis and Spirakis 2006); here as -log(u)/w, smallest first.
        draws = build.unary("neg", build.unary("log", _uniform(x.shape, "f32", x.device)))
        keys = build.where(build.compare("gt", wide, scalar(0, "f32", x.device)), build.div(draws, wide), scalar(math.inf, "f32", x.device))
        axis = len(x.shape) - 1
        return wrap(build.slice_axis(build.argsort(keys, axis, False), axis, 0, num_samples))
    axis = len(x.shape) - 1
    sums = build.cumulative("sum", wide, axis)
    total = build.slice_axis(sums, axis, x.shape[axis] - 1, x.shape[axis])
    draws = build.mul(_uniform((*x.shape[:-1], num_samples), "f32", x.device), total)
    # How many sums a draw has passed is the index that it fell on.
    passed = build.compare("le", build.reshape(sums, (*x.shape[:-1], 1, x.shape[-1])), build.reshape(draws, (*draws.shape, 1)))
    return wrap(build.reduce("sum", build.cast(passed, "i64"), (len(draws.shape),)))
