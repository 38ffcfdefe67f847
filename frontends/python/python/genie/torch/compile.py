"""`torch.compile(model, backend="genie")`: a graph of torch's is captured once, and then run by handle.

What the graph holds still, its parameters, is brought to the server with the first call. A call then sends the inputs that are in this
process, one request, and fetches the outputs that torch has here. On tensors of `remote_accelerator` torch finds no graphs for a backend:
they are captured as without it.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch._dynamo
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.weak import WeakTensorKeyDictionary

from . import run
from .device import NAME, current_device
from .dtypes import name_of
from .node import Node
from .ops.transfer import download, upload
from .random import GENERATOR
from .tensor import RemoteTensor, device_of, node_of, wrap, write


# What runs beneath an operation is no part of the graph that torch.compile looks for.
torch._dynamo.trace_rules.add("genie.torch")


#: Plans that a graph keeps; the one used longest ago goes first.
MOST_PLANS = 64


class Compiled:
    """A graph of torch's on the server, by the shapes that it was called with."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        self._module = module
        self._plans: OrderedDict[Any, _Plan | None] = OrderedDict()
        self._weights: Any = WeakTensorKeyDictionary()
        made = next((n.args[0] for n in module.graph.nodes if n.op == "output"), ())
        #: Where torch has each output: on the server, or here.
        self._there = [
            isinstance(n, torch.fx.Node)
            and isinstance(x := n.meta.get("example_value"), torch.Tensor)
            and x.device.type == NAME
            for n in tree_flatten(made)[0]
        ]
        #: Where its graph makes tensors that it names no device for.
        self._device: Any = contextlib.nullcontext()
        if not any(self._there) and not any(_names(node) for node in module.graph.nodes):
            _bring(module)
            self._device = device_of(current_device())

    def __call__(self, *inputs: Any) -> Any:
        with torch.no_grad():
            nodes = [self._input(x) for x in inputs]
            key = tuple(_key(x) for x in nodes)
            if key not in self._plans:
                self._plans[key] = self._planned(nodes)
                if len(self._plans) > MOST_PLANS:
                    self._plans.popitem(last=False)
            self._plans.move_to_end(key)
            plan = self._plans[key]
            if plan is None:
                # What depends on values cannot be captured before they are there.
                with self._device:
                    plan = _Plan(self._module, nodes, nodes)
            made, changed = plan(nodes)
            for i, node in changed:
                _change(inputs[i], node)
            leaves = [
                inputs[given] if given is not None else self._back(x, i) for i, (x, given) in enumerate(zip(made, plan.given))
            ]
            return tree_unflatten(leaves, plan.form)

    def _planned(self, nodes: Sequence[Any]) -> _Plan | None:
        state = GENERATOR.state()
        try:
            with self._device:
                return _Plan(self._module, nodes, [_leaf(x) if isinstance(x, Node) else x for x in nodes])
        except Exception:  # noqa: BLE001: it comes again from the values themselves, if it is one
            return None
        finally:
            GENERATOR.restore(*state)

    def _back(self, value: Any, i: int) -> Any:
        if not isinstance(value, Node):
            return value
        return wrap(value) if i < len(self._there) and self._there[i] else download(value)

    def _input(self, value: Any) -> Any:
        if isinstance(value, RemoteTensor):
            return node_of(value)
        if not isinstance(value, torch.Tensor):
            return value
        if value.dtype == torch.float64 and not value.dim() and value.device.type == "cpu":
            # A number of Python's, as torch hands it over.
            return value
        if not isinstance(value, torch.nn.Parameter):
            return upload(value, name_of(value.dtype), current_device())
        known, now = self._weights.get(value), (value._version, value.data_ptr())
        if known is not None and known[0] == now:
            return known[1]
        node = upload(value, name_of(value.dtype), current_device())
        # Held as a storage would hold it: it is needed again.
        node.holders += 1
        self._weights[value] = now, node
        return node


def _key(value: Any) -> Any:
    if isinstance(value, Node):
        return value.shape, value.dtype, value.device, value.residency
    return ("number", repr(value.item())) if isinstance(value, torch.Tensor) else (type(value), value)


def _change(target: Any, node: Node) -> None:
    if isinstance(target, RemoteTensor):
        write(target, node)
    else:
        target.copy_(download(node))


def _names(node: torch.fx.Node) -> bool:
    """Whether a node of torch's graph names this device."""
    return any(_is(x, NAME) for x in tree_flatten((node.args, node.kwargs))[0])


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, torch.device) and value.type == kind


def _bring(module: torch.fx.GraphModule) -> None:
    """A graph of this process: what it makes here, and has here, is on the server instead."""
    device = device_of(current_device())
    for node in module.graph.nodes:
        text = node.op == "call_method" and node.target == "to"
        change = lambda x: device if _is(x, "cpu") or (text and x == "cpu") else x  # noqa: E731
        node.args, node.kwargs = tree_map(change, node.args), tree_map(change, node.kwargs)
        if node.op == "call_method" and node.target == "cpu":
            node.target = "alias"
        if node.op == "get_attr":
            owner, _, name = node.target.rpartition(".")
            holder = module.get_submodule(owner)
            value = getattr(holder, name)
            if isinstance(value, torch.Tensor) and not isinstance(value, RemoteTensor):
                delattr(holder, name)
                setattr(holder, name, wrap(upload(value, name_of(value.dtype), current_device())))
    module.recompile()


class _Plan:
    """What a call captured: its nodes, with a place for each input."""

    def __init__(self, module: torch.fx.GraphModule, inputs: Sequence[Any], places: Sequence[Any]) -> None:
        # The inputs of a plan are leaves: what they are computed from is another graph.
        self.places = places
        given = [wrap(x) if isinstance(x, Node) else x for x in places]
        made = module(*given)
        flat, self.form = tree_flatten(made)
        #: Which outputs are inputs, and what is written to inputs.
        whose = {id(x._storage): i for i, x in enumerate(given) if isinstance(x, RemoteTensor)}
        self.given = [
            whose.get(id(x._storage)) if isinstance(x, RemoteTensor) and not x._chain and x.shape == x._storage.node.shape else None for x in flat
        ]
        self.changed = [(i, x._storage.node) for i, x in enumerate(given) if isinstance(x, RemoteTensor) and x._storage.version]
        self.outputs = [node_of(x) if isinstance(x, RemoteTensor) else x for x in flat]
        self.drawn = places is not inputs

    def __call__(self, inputs: Sequence[Any]) -> tuple[list[Any], list[tuple[int, Node]]]:
        if not self.drawn:
            return self.outputs, self.changed
        run.realise([x for x in inputs if isinstance(x, Node) and not x.is_leaf()])
        given = {id(place): x for place, x in zip(self.places, inputs) if isinstance(place, Node)}
        made: dict[int, Node] = {}
        order = run.order_of([x for x in (*self.outputs, *(node for _, node in self.changed)) if isinstance(x, Node)])
        # Random numbers are drawn anew, in the order in which they were drawn.
        for node in sorted((n for n in order if n.op == "random"), key=lambda n: n.inputs[0].value[8:16][::-1]):
            made[id(node)] = GENERATOR.draw(dict(node.attrs)["kind"], node.shape, node.dtype, node.device)
        for node in order:
            if id(node) not in made:
                made[id(node)] = given[id(node)] if id(node) in given else _copy(node, made)
        changed = [(i, made[id(node)]) for i, node in self.changed]
        return [made[id(x)] if isinstance(x, Node) else x for x in self.outputs], changed


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
