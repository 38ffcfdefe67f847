"""Arrays in this machine's memory."""

from __future__ import annotations

import array as _arrays
import importlib
from typing import TYPE_CHECKING, Any

from . import _native
from .errors import BadInput

if TYPE_CHECKING:
    import numpy


class Array(_native.Memory):
    """Elements in memory: what `Session.get` brings, or a view of another library's array.

    Shares its memory by the buffer protocol (`memoryview`, `numpy.asarray`) and DLPack (`torch.from_dlpack`); nothing is copied.
    """

    __slots__ = ()

    @property
    def dtype(self) -> str:
        """`f32`, `f16`, `bf16`, `i64`, `i32`, `u8` or `bool`."""
        return _native.describe(self)[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """The dimensions, outermost first."""
        return _native.describe(self)[1]

    @property
    def nbytes(self) -> int:
        """The size in bytes."""
        return _native.describe(self)[2]

    @property
    def writable(self) -> bool:
        """Whether the elements may be changed."""
        return _native.describe(self)[3]

    def numpy(self) -> numpy.ndarray[Any, Any]:
        """A NumPy array over the same memory. bf16 needs the package `ml_dtypes`: NumPy itself has no such type."""
        import numpy

        if self.dtype != "bf16":
            return numpy.asarray(self)
        try:
            ml_dtypes = importlib.import_module("ml_dtypes")
        except ImportError as error:
            raise BadInput(
                "NumPy has no bf16: pip install ml_dtypes, or use torch.from_dlpack(array)"
            ) from error
        bits = numpy.asarray(_native.memory(self, "u8", [self.nbytes]))
        seen: numpy.ndarray[Any, Any] = bits.view(ml_dtypes.bfloat16).reshape(self.shape)
        return seen

    def tobytes(self) -> bytes:
        """A copy of the elements: little-endian, row-major."""
        return bytes(_native.memory(self, "u8", [self.nbytes]))

    def tolist(self) -> Any:
        """The elements as Python's numbers, in lists of lists."""
        if self.dtype == "bf16":
            raise BadInput("Python has no bf16: use torch.from_dlpack(array).tolist()")
        return memoryview(self).tolist()

    def __dlpack__(
        self,
        *,
        stream: object = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> object:
        if dl_device is not None and tuple(dl_device) != (1, 0):
            raise BufferError("this array is in the CPU's memory: take it as it is, then move it")
        if copy:
            raise BufferError("nothing is copied here: take it as it is, then copy it")
        return _native.to_dlpack(self, max_version is not None and max_version[0] >= 1)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("an array without dimensions has no length")
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<genie.Array {self.dtype} {list(self.shape)}>"


def asarray(data: object, dtype: object = None, shape: list[int] | tuple[int, ...] | None = None) -> Array:
    """An array over the memory of `data`, which is not copied: anything with the buffer protocol or DLPack.

    With `dtype` or `shape`, the same bytes are taken for elements of another type, or laid out in other dimensions. Numbers and
    lists of numbers are converted: floats to f32, integers to i64, booleans to bool.
    """
    if isinstance(data, (list, tuple, int, float)):
        made = _of_numbers(data)
        if dtype is not None and _native.memory(b"\0" * 8, dtype).dtype != made.dtype:
            raise BadInput(f"numbers like these become {made.dtype}: convert them with NumPy for another type")
        data, dtype = made, None
    return _native.memory(data, dtype, None if shape is None else list(shape))


def _of_numbers(data: object) -> Array:
    shape: list[int] = []
    inner = data
    while isinstance(inner, (list, tuple)):
        shape.append(len(inner))
        inner = inner[0] if inner else None
    flat: list[Any] = [data]
    for length in shape:
        if any(not isinstance(row, (list, tuple)) or len(row) != length for row in flat):
            raise BadInput("the lists are not of equal length: an array has none that are longer than others")
        flat = [item for row in flat for item in row]
    if not flat or any(not isinstance(item, (bool, int, float)) for item in flat):
        raise BadInput("lists of numbers can be made an array, and nothing else: there has to be one number at least")
    if all(isinstance(item, bool) for item in flat):
        return _native.memory(bytes(flat), "bool", shape)
    try:
        if all(isinstance(item, int) for item in flat):
            return _native.memory(_arrays.array("q", flat), "i64", shape)
        return _native.memory(_arrays.array("f", flat), "f32", shape)
    except OverflowError as error:
        raise BadInput(f"a number among these has no room in i64, or in f32 beside fractions: {error}") from error
