"""Images sampled at any places."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from .. import build
from ..dispatch import HANDLERS, widened
from ..node import Node
from ..operands import scalar
from ..tensor import RemoteTensor, node_of, wrap

_BILINEAR, _NEAREST, _BICUBIC = range(3)
_ZEROS, _BORDER, _REFLECTION = range(3)
#: The slope of the cubic kernel, as torch has it.
_SLOPE = -0.75


def _constant(value: float, like: Node) -> Node:
    return scalar(value, like.dtype, like.device)


def _reflected(at: Node, twice_low: int, twice_high: int) -> Node:
    if twice_low == twice_high:
        return build.mul(at, _constant(0, at))
    low, span = _constant(twice_low / 2, at), _constant((twice_high - twice_low) / 2, at)
    off = build.unary("abs", build.sub(at, low))
    extra, flips = build.binary("fmod", off, span), build.unary("floor", build.div(off, span))
    even = build.compare("eq", build.binary("fmod", flips, _constant(2, at)), _constant(0, at))
    return build.add(build.where(even, extra, build.sub(span, extra)), low)


def _placed(at: Node, size: int, padding: int, align: bool) -> Node:
    """A coordinate, brought to where there are elements as the padding says."""
    if padding == _REFLECTION:
        at = _reflected(at, 0, 2 * (size - 1)) if align else _reflected(at, -1, 2 * size - 1)
    if padding != _ZEROS:
        at = build.binary("minimum", build.binary("maximum", at, _constant(0, at)), _constant(size - 1, at))
    return at


def _taps(flat: Node, sizes: Sequence[int], where: Sequence[Node]) -> Node:
    """Elements of images `[N, C, elements]` at whole coordinates, an axis each, of `[N, points]`; 0 outside."""
    n, c, _ = flat.shape
    joint: Node | None = None
    inside: Node | None = None
    for at, size in zip(where, sizes):
        held = build.binary("bit_and", build.compare("ge", at, _constant(0, at)), build.compare("le", at, _constant(size - 1, at)))
        inside = held if inside is None else build.binary("bit_and", inside, held)
        ids = build.cast(build.where(held, at, _constant(0, at)), "i64")
        joint = ids if joint is None else build.add(build.mul(joint, scalar(size, "i64", at.device)), ids)
    assert joint is not None and inside is not None
    points = joint.shape[1]
    ids = build.expand(build.reshape(joint, (n, 1, points)), (n, c, points))
    taken = build.take_along(flat, ids, 2)
    return build.where(build.reshape(inside, (n, 1, points)), taken, _constant(0, taken))


def _weighted(taken: Node, weights: Sequence[Node]) -> Node:
    weight = weights[0]
    for other in weights[1:]:
        weight = build.mul(weight, other)
    return build.mul(taken, build.reshape(weight, (weight.shape[0], 1, weight.shape[1])))


def _cubic(t: Node) -> list[Node]:
    """Weights of the four taps around a fraction (Keys 1981)."""
    constant: Callable[[float], Node] = lambda v: _constant(v, t)  # noqa: E731

    def near(x: Node) -> Node:
        made = build.sub(build.mul(x, constant(_SLOPE + 2)), constant(_SLOPE + 3))
        return build.add(build.mul(build.mul(made, x), x), constant(1))

    def far(x: Node) -> Node:
        made = build.sub(build.mul(x, constant(_SLOPE)), constant(5 * _SLOPE))
        made = build.add(build.mul(made, x), constant(8 * _SLOPE))
        return build.sub(build.mul(made, x), constant(4 * _SLOPE))

    rest = build.sub(constant(1), t)
    return [far(build.add(t, constant(1))), near(t), near(rest), far(build.add(rest, constant(1)))]


@HANDLERS.add("grid_sampler_2d.default", "grid_sampler_3d.default")
@widened
def grid_sampler(input: RemoteTensor, grid: RemoteTensor, interpolation_mode: int, padding_mode: int, align_corners: bool) -> RemoteTensor:  # noqa: A002
    x, places = node_of(input), node_of(grid)
    sizes, rank = x.shape[2:], len(x.shape) - 2
    n, c, shown = x.shape[0], x.shape[1], places.shape[1:-1]
    shape = (n, c, *shown)
    if 0 in x.shape or 0 in shape:
        return wrap(build.empty(shape, x.dtype, x.device))
    flat = build.reshape(x, (n, c, x.numel // (n * c)))
    points = build.reshape(places, (n, places.numel // (n * rank), rank))
    at = []
    for i, size in enumerate(sizes):
        # The grid names the last axis first.
        line = build.reshape(build.slice_axis(points, 2, rank - 1 - i, rank - i), points.shape[:2])
        line = build.mul(build.add(line, _constant(1, line)), _constant((size - 1) / 2 if align_corners else size / 2, line))
        at.append(line if align_corners else build.sub(line, _constant(0.5, line)))
    if interpolation_mode != _BICUBIC:
        at = [_placed(line, size, padding_mode, align_corners) for line, size in zip(at, sizes)]
    if interpolation_mode == _NEAREST:
        return wrap(build.reshape(_taps(flat, sizes, [build.unary("round", line) for line in at]), shape))
    floors = [build.unary("floor", line) for line in at]
    fractions = [build.sub(line, floor) for line, floor in zip(at, floors)]
    steps: tuple[int, ...]
    if interpolation_mode == _BICUBIC:
        steps, weights = (-1, 0, 1, 2), [_cubic(t) for t in fractions]
    else:
        steps, weights = (0, 1), [[build.sub(_constant(1, t), t), t] for t in fractions]
    total: Node | None = None
    for corner in itertools.product(range(len(steps)), repeat=rank):
        where = [build.add(floor, _constant(steps[k], floor)) for floor, k in zip(floors, corner)]
        if interpolation_mode == _BICUBIC:
            where = [_placed(line, size, padding_mode, align_corners) for line, size in zip(where, sizes)]
        part = _weighted(_taps(flat, sizes, where), [weights[i][k] for i, k in enumerate(corner)])
        total = part if total is None else build.add(total, part)
    assert total is not None
    return wrap(build.reshape(total, shape))
