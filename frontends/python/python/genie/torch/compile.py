"""`torch.compile(model, backend="genie")`: a graph of torch's is captured once, and then run by handle.

What the graph holds still, its parameters, is brought to the server with the first call. A call then sends the inputs that are in this
process, one request, and fetches the outputs if the inputs were here: where they are on `remote_accelerator`, the outputs stay there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._dynamo
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

from . import run
from .device import current_device
from .dtypes import name_of
from .node import Node
from .ops.transfer import download, upload
from .tensor import RemoteTensor, node_of, wrap


# What runs beneath an operation is no part of the graph that torch.compile looks for.
torch._dynamo.trace_rules.add("genie.torch")


class Compiled:
    """A graph of torch's on the server, by the shapes that it was called with."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        self._module = module
        self._plans: dict[Any, _Plan | None] = {}
        self._weights: Any = WeakTensorKeyDictionary()

    def __call__(self, *inputs: Any) -> Any:
        with torch.no_grad():
            here = not any(isinstance(x, RemoteTensor) for x in inputs)
            nodes = [self._input(x) for x in inputs]
            key = tuple(
                ((n.shape, n.dtype, n.device, n.residency) if isinstance(n, Node) else n) for n in nodes
            )
            plan = self._plans.get(key)
            if plan is None:
                plan = self._plans[key] = _Plan(self._module, nodes)
            made = plan(nodes)
            leaves = [_back(x, here) for x in made]
            return tree_unflatten(leaves, plan.form)

    def _input(self, value: Any) -> Any:
        if isinstance(value, RemoteTensor):
            return node_of(value)
        if not isinstance(value, torch.Tensor):
            return value
        if not isinstance(value, torch.nn.Parameter):
            return upload(value, name_of(value.dtype), current_device())
        known = self._weights.get(value)
        if known is not None and known[0] == value._version:
            return known[1]
        node = upload(value, name_of(value.dtype), current_device())
        # Held as a storage would hold it: it is needed again.
        node.holders += 1
        self._weights[value] = value._version, node
        return node


def _back(value: Any, here: bool) -> Any:
    if not isinstance(value, Node):
        return value
    return download(value) if here else wrap(value)


class _Plan:
    """What a call captured: its nodes, with a place for each input."""

    def __init__(self, module: torch.fx.GraphModule, inputs: Sequence[Any]) -> None:
        # The inputs of a plan are leaves: what they are computed from is another graph.
        self.places = [_leaf(x) if isinstance(x, Node) else x for x in inputs]
        made = module(*(wrap(x) if isinstance(x, Node) else x for x in self.places))
        flat, self.form = tree_flatten(made)
        self.outputs = [node_of(x) if isinstance(x, RemoteTensor) else x for x in flat]

    def __call__(self, inputs: Sequence[Any]) -> list[Any]:
        run.realise([x for x in inputs if isinstance(x, Node) and not x.is_leaf()])
        given = {id(place): x for place, x in zip(self.places, inputs) if isinstance(place, Node)}
        made: dict[int, Node] = {}
        wanted = [x for x in self.outputs if isinstance(x, Node)]
        for node in run.order_of(wanted):
            made[id(node)] = given[id(node)] if id(node) in given else _copy(node, made)
        return [made[id(x)] if isinstance(x, Node) else x for x in self.outputs]


def _leaf(node: Node) -> Node:
    made = Node("resident" if node.op != "empty" else "empty", (), (), node.shape, node.dtype, node.device)
    made.residency = node.residency
    return made


def _copy(node: Node, made: dict[int, Node]) -> Node:
    if node.is_leaf():
        return node
    copy = Node(node.op, node.attrs, tuple(made[id(x)] for x in node.inputs), node.shape, node.dtype, node.device)
    copy.phase = node.phase
    return copy


def backend(module: torch.fx.GraphModule, example_inputs: Sequence[Any]) -> Callable[..., Any]:
    """The backend that `torch.compile` knows as `genie`."""
    return Compiled(module)
