"""The device `remote_accelerator`, as torch sees it: its registration, and the module `torch.remote_accelerator`."""

from __future__ import annotations

import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from . import older
from .random import GENERATOR
from .run import is_known, runner

NAME = "remote_accelerator"


@dataclass(frozen=True)
class DeviceProperties:
    """What a device of the server is."""

    #: What the hardware calls itself.
    name: str
    #: `cpu:0`, `cuda:1`: which of the server's devices it is.
    device: str
    #: Instruction set or compute capability.
    capability: str
    #: Bytes that tensors may take.
    total_memory: int
    #: Bytes not taken when this was asked for.
    free_memory: int


class _Current:
    index = 0


def device_count() -> int:
    """Devices of the server; none where nothing says which server."""
    # torch asks this of whoever forks a generator (2.15), be it for the CPU alone.
    return len(runner().backend.devices()) if is_known() else 0


def is_available() -> bool:
    """Whether a server is known and answers."""
    try:
        return device_count() > 0
    except Exception:  # noqa: BLE001: whatever it is, there is no device to use
        return False


def current_device() -> int:
    """The device that `remote_accelerator` without an index means."""
    return _Current.index


def _index(device: Any) -> int:
    if device is None:
        return _Current.index
    if isinstance(device, int):
        return device
    found = torch.device(device)
    if found.type != NAME:
        raise ValueError(f"expected a {NAME} device, but got {found}")
    return _Current.index if found.index is None else found.index


def set_device(device: Any) -> None:
    """Makes a device the current one."""
    index = _index(device)
    if not 0 <= index < device_count():
        raise RuntimeError(f"there is no {NAME}:{index}: the server has {device_count()} (genie.connect chooses the server)")
    _Current.index = index


class device:  # noqa: N801: as in torch.cuda
    """A context in which a device is the current one."""

    def __init__(self, device: Any) -> None:
        self.index = _index(device)
        self.before = _Current.index

    def __enter__(self) -> None:
        self.before = _Current.index
        set_device(self.index)

    def __exit__(self, *_: Any) -> None:
        _Current.index = self.before


def get_device_properties(device: Any = None) -> DeviceProperties:
    """What a device is, and its memory."""
    index, devices = _index(device), runner().backend.devices()
    if not 0 <= index < len(devices):
        raise RuntimeError(f"there is no {NAME}:{index}: the server has {len(devices)}")
    found = devices[index]
    return DeviceProperties(found["model"], found["name"], found.get("capability", ""), found["total_bytes"], found["free_bytes"])


def get_device_name(device: Any = None) -> str:
    """What the hardware calls itself."""
    return get_device_properties(device).name


def mem_get_info(device: Any = None) -> tuple[int, int]:
    """Bytes that are free on a device, and bytes that tensors may take."""
    found = get_device_properties(device)
    return found.free_memory, found.total_memory


def memory_allocated(device: Any = None) -> int:
    """Bytes of the tensors and KV caches that this process has on a device; what was captured and has not run takes none."""
    return runner().backend.allocated(_index(device))


def synchronize(device: Any = None) -> None:
    """Waits until the server has done what it was asked to: what was captured but never asked for is not run by it."""
    runner().backend.synchronise()


def empty_cache() -> None:
    """Tells the server at once of tensors that this process has let go of."""
    runner().backend.synchronise()


def manual_seed(seed: int) -> None:
    """Seeds the generator of the current device."""
    GENERATOR.seed(seed)


def manual_seed_all(seed: int) -> None:
    """Seeds the generators of all devices: they have one."""
    GENERATOR.seed(seed)


def get_rng_state(device: Any = None) -> torch.Tensor:
    """The generator's state."""
    return torch.tensor(GENERATOR.state(), dtype=torch.int64).view(torch.uint8)


def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
    """Sets the generator's state to one that `get_rng_state` gave."""
    GENERATOR.restore(*state.view(torch.int64).tolist())


def get_amp_supported_dtype() -> list[torch.dtype]:
    """Types that autocast may use."""
    return [torch.float16, torch.bfloat16]


def _is_in_bad_fork() -> bool:
    return False


_PUBLIC: tuple[Callable[..., Any] | type, ...] = (
    device_count, is_available, current_device, set_device, device, get_device_properties, get_device_name, mem_get_info,
    memory_allocated, synchronize, empty_cache, manual_seed, manual_seed_all, get_rng_state, set_rng_state,
    get_amp_supported_dtype, _is_in_bad_fork,
)  # fmt: skip


def register() -> None:
    """Makes `torch.device("remote_accelerator:0")` and `torch.remote_accelerator` mean this. Once a process."""
    if hasattr(torch, NAME):
        return
    module = types.ModuleType(f"torch.{NAME}", "Devices of a Genie server.")
    for item in _PUBLIC:
        setattr(module, item.__name__, item)
    module.DeviceProperties = DeviceProperties  # type: ignore[attr-defined]
    if hasattr(torch._C, "_acc"):
        _register_in_python(module)
    else:
        older.register(NAME, module, current_device)


def _register_in_python(module: types.ModuleType) -> None:
    from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

    class _Hook(torch._C._acc.PrivateUse1Hooks):  # type: ignore[name-defined,misc]
        def is_available(self) -> bool:
            return True

        def has_primary_context(self, dev_id: int) -> bool:
            return True

        def is_built(self) -> bool:
            return True

    class _Guard(torch._C._acc.DeviceGuard):  # type: ignore[name-defined,misc]
        def type_(self) -> Any:
            return torch._C._autograd.DeviceType.PrivateUse1

    _setup_privateuseone_for_python_backend(NAME, module, _Hook(), _Guard())
