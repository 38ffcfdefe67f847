"""What PyTorch calls when it is imported where Genie is installed."""

from __future__ import annotations

import importlib
import warnings


def load() -> None:
    """Makes `remote_accelerator` a device. A PyTorch that cannot have it is told of, and works as without Genie."""
    try:
        importlib.import_module("genie.torch")
    except ImportError as error:
        warnings.warn(str(error), stacklevel=2)
