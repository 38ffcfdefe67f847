"""The guard that PyTorch 2.6 to 2.9 get. Its layout is that of later releases, too, so that every torch can look at it."""

from __future__ import annotations

import ctypes
import sys

import pytest
import torch
from genie.torch import older


def test_the_guard_says_what_it_is_of_and_which_device_is_current() -> None:
    _, meta = older._meta_guard()
    current = 3
    guard = older._guard(meta, lambda: current)
    first = ctypes.c_void_p.from_address(guard).value
    assert first is not None
    functions = (ctypes.c_void_p * older._FUNCTIONS).from_address(first)
    assert older._TypeOf(functions[older._TYPE])(guard) == 20
    assert older._DeviceOf(functions[older._GET_DEVICE])(guard) == 20 | 3 << 8
    current = 1
    assert older._DeviceOf(functions[older._GET_DEVICE])(guard) == 20 | 1 << 8
    kept = {older._TYPE, older._GET_DEVICE}
    assert all(functions[i] == meta[older._BEFORE + i] for i in range(older._FUNCTIONS) if i not in kept)


def test_what_it_is_not_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(ImportError, match="use PyTorch 2.10 or later"):
        older._meta_guard()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch, "__version__", "2.5.1+cpu")
    with pytest.raises(ImportError, match=r"PyTorch 2\.5\.1.*2.6 to 2.9"):
        older._meta_guard()
