"""Registration with PyTorch 2.6 to 2.9, where a device has parts that only C++ could give.

The part that nothing works without is the guard, which says what kind a device is of and which one is the current: a forward of a module
whose parameters require grad ends the process where there is none. Here it is torch's own guard for devices that do nothing (meta's),
with two of its functions replaced.
"""

from __future__ import annotations

import ctypes
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

#: Where these types of devices are in torch's table of guards, and how many it has.
_META, _PRIVATE_USE_1, _TYPES = 14, 20, 21
_GUARDS = "_ZN3c104impl26device_guard_impl_registryE"
#: Functions of a guard, `c10::impl::DeviceGuardImplInterface`, in the order of these releases; two words are before the first of them.
_TYPE, _GET_DEVICE, _FUNCTIONS, _BEFORE = 0, 2, 23, 2
#: `c10::DeviceType` is a byte; `c10::Device` is that and a byte with the index.
_TypeOf = ctypes.CFUNCTYPE(ctypes.c_int8, ctypes.c_void_p)
_DeviceOf = ctypes.CFUNCTYPE(ctypes.c_uint16, ctypes.c_void_p)
#: What torch points at from then on.
_KEPT: list[Any] = []


def register(name: str, module: types.ModuleType, current_device: Callable[[], int]) -> None:
    """Makes PrivateUse1 the device of this name.

    Raises ImportError, before anything is changed, where this PyTorch is none of those that this is for.
    """
    guards, meta = _meta_guard()
    torch.utils.rename_privateuse1_backend(name)
    torch.utils.generate_methods_for_privateuse1_backend()
    torch._register_device_module(name, module)
    guards[_PRIVATE_USE_1] = _guard(meta, current_device)
    # Operations that torch takes apart on other devices, and that this one answers whole, have no autograd to go through.
    beneath = torch.library.Library("_", "IMPL")  # type: ignore[no-untyped-call]
    beneath.fallback(torch.library.fallthrough_kernel, "AutogradPrivateUse1")
    _KEPT.append(beneath)
    _pinned()


def _meta_guard() -> tuple[Any, Any]:
    """torch's table of guards, and the functions of meta's, with what is before them."""
    refused = ImportError(
        f"PyTorch {torch.__version__} cannot have the device remote_accelerator on this system: use PyTorch 2.10 or later "
        "(2.6 to 2.9 can have it on Linux)"
    )
    if sys.platform != "linux" or tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise refused
    try:
        core = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libc10.so"))
        guards = (ctypes.c_void_p * _TYPES).in_dll(core, _GUARDS)
    except (OSError, ValueError) as error:
        raise refused from error
    if not guards[_META]:
        raise refused
    first = ctypes.c_void_p.from_address(guards[_META]).value
    if first is None:
        raise refused
    words = (ctypes.c_void_p * (_BEFORE + _FUNCTIONS)).from_address(first - _BEFORE * ctypes.sizeof(ctypes.c_void_p))
    # It has no state, so that its functions can be asked whether they are what they are taken for.
    kind, device = words[_BEFORE + _TYPE], words[_BEFORE + _GET_DEVICE]
    if _TypeOf(kind)(guards[_META]) != _META or _DeviceOf(device)(guards[_META]) != _META | 0xFF00:
        raise refused
    return guards, words


def _guard(meta: Any, current_device: Callable[[], int]) -> int:
    """The address of a guard that does what meta's does, for devices of PrivateUse1."""
    functions = type(meta)(*meta)
    kind = _TypeOf(lambda _: _PRIVATE_USE_1)
    device = _DeviceOf(lambda _: _PRIVATE_USE_1 | current_device() << 8)
    functions[_BEFORE + _TYPE] = ctypes.cast(kind, ctypes.c_void_p).value
    functions[_BEFORE + _GET_DEVICE] = ctypes.cast(device, ctypes.c_void_p).value
    made = ctypes.c_void_p(ctypes.addressof(functions) + _BEFORE * ctypes.sizeof(ctypes.c_void_p))
    _KEPT.extend((functions, kind, device, made))
    return ctypes.addressof(made)


def _pinned() -> None:
    """Lets tensors of the CPU be asked whether they are pinned: PyTorch 2.6 asks the hooks of PrivateUse1, and takes no answer but theirs."""
    try:
        torch.empty(0).is_pinned()
    except RuntimeError:
        whole = torch.ops.aten.is_pinned.default

        def is_pinned(self: torch.Tensor, device: torch.device | None = None) -> bool:
            # Without a device, the question is whether it is pinned for this one, which has no such memory.
            return device is not None and whole._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, self, device)

        answers = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
        answers.impl("is_pinned", is_pinned, "CPU")
        _KEPT.append(answers)
