"""NVIDIA's GPUs through NVML. May hang, as the driver may: only a process that can be given up calls this.

What a driver does not support is left out. The order of NVML is not that of CUDA, nor the same after a reboot, so
everything goes by UUID.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable
from typing import Any, TypeVar

import pynvml

from modelsupd.runtime.gpus.reading import EXCLUSIVE, NVIDIA, PROHIBITED, Seen

Value = TypeVar("Value")

#: Where pynvml looks by itself.
USUAL = "libnvidia-ml.so.1"

#: Reasons for lower clocks that say that it is hot (nvml.h, nvmlClocksEventReasonSwThermalSlowdown, HwThermal…).
_HOT = 0x20 | 0x40

#: Compute modes other than the usual one (nvml.h, nvmlComputeMode_t); of a thread is what there was before CUDA 8.
_MODES = {1: EXCLUSIVE, 2: PROHIBITED, 3: EXCLUSIVE}

_LOST = (pynvml.NVML_ERROR_GPU_IS_LOST, getattr(pynvml, "NVML_ERROR_RESET_REQUIRED", -1))


class Nvml:
    """The library, once it is loaded; remembers who was there, because a lost GPU no longer tells its name.

    `divided` are the GPUs in MIG mode, by UUID; `notes` say why the last look could not tell of a GPU at all.
    """

    def __init__(self, path: str) -> None:
        """Load and initialise it; raises pynvml.NVMLError and OSError."""
        if path != USUAL:
            pynvml.nvmlLib = ctypes.CDLL(path)
        pynvml.nvmlInit()
        self._known: dict[int, list[Seen]] = {}
        self.divided: set[str] = set()
        self.notes: list[str] = []
        self._events: Any = None
        self._watched: set[str] = set()
        with contextlib.suppress(pynvml.NVMLError):
            self._events = pynvml.nvmlEventSetCreate()

    def read(self) -> list[Seen]:
        """Return all GPUs; raises pynvml.NVMLError where not even their number is told."""
        self.notes = []
        count = pynvml.nvmlDeviceGetCount()
        xids = self._xids()
        found: list[Seen] = []
        for index in range(max([count, *(known + 1 for known in self._known)])):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                devices = self._devices(handle, index, xids)
            except pynvml.NVMLError as error:
                # Of a GPU in MIG mode it is its devices that are lost: they are what runs were given.
                known, why = self._known.get(index, ()), (str(error),)
                found += [
                    Seen(uuid=seen.uuid, index=index, name=seen.name, parent=seen.parent, lost=True, notes=why)
                    for seen in known
                ]
                self.notes += [] if known else [f"{NVIDIA}: GPU {index}: {error}"]
                continue
            found += devices
        return found

    def _devices(self, handle: Any, index: int, xids: dict[str, list[int]]) -> list[Seen]:  # noqa: ANN401 - a pointer of pynvml's
        uuid, name = str(pynvml.nvmlDeviceGetUUID(handle)), str(pynvml.nvmlDeviceGetName(handle))
        self._watch(handle, uuid)
        mine = tuple(xids.get(uuid, ()))
        parts = self._parts(handle)
        if parts is None:
            self.divided.discard(uuid)
            found = [self._seen(handle, index, uuid, name, None, mine)]
        else:
            self.divided.add(uuid)
            found = [
                self._seen(part, index, str(pynvml.nvmlDeviceGetUUID(part)), f"{name} MIG {number}", uuid, mine)
                for number, part in parts
            ]
        self._known[index] = found
        return found

    @staticmethod
    def _parts(handle: Any) -> list[tuple[int, Any]] | None:  # noqa: ANN401 - the same
        """Return the MIG devices of a GPU, None where it is not divided."""
        mode = _asked(lambda: pynvml.nvmlDeviceGetMigMode(handle))
        if not mode or not mode[0]:
            return None
        parts = []
        for number in range(_asked(lambda: pynvml.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0):
            part = _asked(lambda number=number: pynvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))  # type: ignore[misc]  # a default binds the loop's variable
            if part is not None:
                parts.append((number, part))
        return parts

    @staticmethod
    def _seen(
        handle: Any,  # noqa: ANN401 - the same
        index: int,
        uuid: str,
        name: str,
        parent: str | None,
        xids: tuple[int, ...],
    ) -> Seen:
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        ecc = _asked(
            lambda: pynvml.nvmlDeviceGetTotalEccErrors(
                handle, pynvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, pynvml.NVML_VOLATILE_ECC
            )
        )
        return Seen(
            uuid=uuid,
            index=index,
            name=name,
            parent=parent,
            total_bytes=int(memory.total),
            # Not `used`, which leaves out on some drivers what the driver itself keeps.
            used_bytes=int(memory.total) - int(memory.free),
            processes=_processes(handle),
            xids=xids,
            mode=_MODES.get(_asked(lambda: int(pynvml.nvmlDeviceGetComputeMode(handle))) or 0, ""),
            ecc_errors=None if ecc is None else int(ecc),
            temperature_c=_asked(lambda: int(pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU))),
            notes=tuple(_notes(handle)),
        )

    def _watch(self, handle: Any, uuid: str) -> None:  # noqa: ANN401 - the same
        if self._events is None or uuid in self._watched:
            return
        self._watched.add(uuid)
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlDeviceRegisterEvents(handle, pynvml.nvmlEventTypeXidCriticalError, self._events)

    def _xids(self) -> dict[str, list[int]]:
        """Return the errors since the last look, by GPU."""
        found: dict[str, list[int]] = {}
        while self._events is not None:
            try:
                event = pynvml.nvmlEventSetWait_v2(self._events, 0)
                found.setdefault(str(pynvml.nvmlDeviceGetUUID(event.device)), []).append(int(event.eventData))
            except pynvml.NVMLError:  # most often: nothing more has happened
                break
        return found


def _asked(ask: Callable[[], Value]) -> Value | None:
    """Return the answer, None where this driver or card has none; a lost GPU is raised on."""
    try:
        return ask()
    except pynvml.NVMLError as error:
        if error.value in _LOST:
            raise
        return None


def _processes(handle: Any) -> tuple[tuple[int, int | None], ...] | None:  # noqa: ANN401 - a pointer of pynvml's
    found: dict[int, int | None] = {}
    told = False
    for ask in (pynvml.nvmlDeviceGetComputeRunningProcesses_v3, pynvml.nvmlDeviceGetGraphicsRunningProcesses_v3):
        listed = _asked(lambda ask=ask: ask(handle))  # type: ignore[misc]  # a default binds the loop's variable
        told = told or listed is not None
        for process in listed or ():
            size = process.usedGpuMemory
            known = found.get(process.pid)
            found[process.pid] = known if size is None else max(int(size), known or 0)
    return tuple(sorted(found.items())) if told else None


def _notes(handle: Any) -> list[str]:  # noqa: ANN401 - the same
    notes = []
    reasons = _asked(lambda: pynvml.nvmlDeviceGetCurrentClocksEventReasons(handle))
    if reasons is None:
        reasons = _asked(lambda: pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle))
    if reasons and reasons & _HOT:
        notes.append("slowed down because it is hot")
    remapped = _asked(lambda: pynvml.nvmlDeviceGetRemappedRows(handle))
    if remapped and remapped[2]:
        notes.append("a memory row is to be remapped at the next reset")
    if remapped and remapped[3]:
        notes.append("remapping a memory row has failed")
    return notes
