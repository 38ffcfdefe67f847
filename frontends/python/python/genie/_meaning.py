"""What the data of the PyTorch device is for. The device itself, and torch, are loaded when one of these is called."""

from __future__ import annotations

import importlib
from contextlib import AbstractContextManager
from typing import Any, cast


def _device() -> Any:
    return importlib.import_module("genie.torch")


def phase(name: str) -> AbstractContextManager[None]:
    """A context: what is captured in it belongs to a phase, `prefill`, `decode`, `vision` or `fusion`, whatever it looks like."""
    return cast("AbstractContextManager[None]", _device().phase(name))


def annotate(tensor: Any, *, residency: str) -> Any:
    """Says what a tensor of `remote_accelerator` is, where it is not what it looks like: a `weight`, a `kv-cache`, an `activation`."""
    return _device().annotate(tensor, residency=residency)


def explain(tensor: Any) -> Any:
    """Computes a tensor of `remote_accelerator`, and says what that was: its graph, phase, bytes to move, cost estimated and measured."""
    return _device().explain(tensor)
