"""The memory of an emulated device: numbers are NaN until they are written, and kernels get addresses."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Iterable
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.lib.array_utils import byte_bounds

ALIGNMENT = 256


class MixError(TypeError):
    """A strict array was combined with a host array, a NumPy scalar, or an array of another precision or device."""


class Device:
    """A device; arrays are created and operations run on the current one."""

    current = 0

    def __init__(self, index: int) -> None:
        self.id = index
        self._before: list[int] = []

    def __repr__(self) -> str:
        return f"<strict device {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and other.id == self.id

    def __hash__(self) -> int:
        return self.id

    def use(self) -> None:
        """Make this the current device."""
        Device.current = self.id

    def __enter__(self) -> Device:
        self._before.append(Device.current)
        self.use()
        return self

    def __exit__(self, *error: object) -> None:
        Device.current = self._before.pop()


class Memory(bytearray):
    """An allocation, initialised to NaN in every float, and to -1 or the largest number in every integer.

    Attributes
    ----------
    start, stop : int
        The addresses of the first byte and of the byte after the last one.
    device : Device
        The device that was current when it was allocated.
    """

    in_use: ClassVar[dict[int, weakref.ref[Memory]]] = {}

    def __init__(self, size: int) -> None:
        super().__init__(size + ALIGNMENT)
        address = ctypes.addressof(ctypes.c_char.from_buffer(self))
        ctypes.memset(address, 0xFF, len(self))
        self.start = -(-address // ALIGNMENT) * ALIGNMENT
        self.stop = self.start + size
        self.offset = self.start - address
        self.device = Device(Device.current)
        self.in_use[self.start] = weakref.ref(self)

    def __del__(self) -> None:
        self.in_use.pop(self.start, None)


class Pointer(NamedTuple):
    """The memory of an array; `ptr` is the address of its first element, as in ``x.data.ptr`` of CuPy's arrays."""

    ptr: int
    first: int
    stop: int
    device: Device
    dtype: str
    writable: bool


def memory_of(array: np.ndarray[Any, Any]) -> Memory | None:
    """Return the device memory that an array is a view of, or None for an array on the host."""
    base: Any = array
    while isinstance(base, np.ndarray):
        base = base.base
    return base if isinstance(base, Memory) else None


def device_of(array: np.ndarray[Any, Any]) -> Device | None:
    """Return the device of an array, or None for the host."""
    memory = memory_of(array)
    return None if memory is None else memory.device


def placed(array: np.ndarray[Any, Any], *, copy: bool = True) -> np.ndarray[Any, Any]:
    """Return a copy of an array in new memory with the same layout; without `copy`, uninitialised memory."""
    memory = Memory(array.nbytes)
    strides = array.strides if array.flags.c_contiguous else np.empty_like(array).strides
    result: np.ndarray[Any, Any] = np.ndarray(array.shape, array.dtype, memory, memory.offset, strides)
    if copy:
        result[...] = array
    return result


def pointer_to(array: np.ndarray[Any, Any]) -> Pointer:
    """Return the address and the memory of an array on a device."""
    memory = memory_of(array)
    assert memory is not None
    address = array.__array_interface__["data"][0]
    first, stop = (address, address + array.nbytes) if array.flags.c_contiguous else byte_bounds(array)
    return Pointer(address, first, stop, memory.device, array.dtype.name, array.flags.writeable)


def owner_of(first: int, stop: int) -> Memory | None:
    """Return the allocation that contains the bytes from `first` to `stop`, or None."""
    start = max(filter(first.__ge__, list(Memory.in_use)), default=0)
    memory = Memory.in_use[start]() if start else None
    return memory if memory is not None and stop <= memory.stop else None


def check_devices(what: str, devices: Iterable[Device]) -> None:
    """Raise MixError unless all devices are the current one."""
    for device in devices:
        if device.id != Device.current:
            raise MixError(f"{what} runs on device {Device.current}, but an array of it is on device {device.id}")
