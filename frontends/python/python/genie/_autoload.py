"""What PyTorch calls when it is imported where Genie is installed."""

from __future__ import annotations

import importlib
import os
import sys
import warnings

#: Whether this package was imported before torch, rather than by it.
_ASKED_FOR = "torch" not in sys.modules
#: Files of a machine that has a GPU of its own.
_GPUS = ("/dev/nvidia0", "/dev/kfd")


def load() -> None:
    """Makes `remote_accelerator` a device, if a server is named, Genie was imported before, or the machine has no GPU of its own.

    torch takes a device like this one for the accelerator of its machine (`torch.accelerator`, `.to(0)`): where there is another, it stays
    that until `genie.connect` or `import genie.torch`. A PyTorch that cannot have the device is told of, and works as without Genie.
    """
    if _ASKED_FOR or os.environ.get("GENIE_SERVER") or not any(map(os.path.exists, _GPUS)):
        _register()


def connected() -> None:
    """A server is known: where torch is there, it has the device."""
    if hasattr(sys.modules.get("torch"), "nn") and "genie.torch" not in sys.modules:
        _register()


def _register() -> None:
    try:
        importlib.import_module("genie.torch")
    except ImportError as error:
        warnings.warn(str(error), stacklevel=3)
