"""How an engine's last words are read.

Two rules. Only a message of the engine's that is known, matched in the form in which the engine writes it, makes an
exit more than a crash. And what was said before the engine was ready explains no death after it: a log also holds what
clients sent, and a permanent verdict must not hang on that.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from modelsupd.core.events import Exit, Failure, FailureClass
from modelsupd.engines.base import clip

#: The shim's RFC 3339 stamp, and the stamp and level of llama.cpp (`0.00.004.797 E `), which come after one another.
_STAMPS = re.compile(r"(?:\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z )?(?:\d+\.\d\d\.\d{3}\.\d{3} (?:[A-Z] )?)?")
_COLOURS = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")

#: A death by one of these is the engine's own: it aborted, or touched what it must not.
_OWN_SIGNALS = {4: "SIGILL", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 11: "SIGSEGV"}
_KILLED = 9


@dataclass(frozen=True, slots=True)
class Rule:
    """A message known of an engine. `starting` rules hold only for an engine that had not become ready."""

    kind: FailureClass
    pattern: re.Pattern[str]
    starting: bool = True


def rule(kind: FailureClass, pattern: str, *, starting: bool = True) -> Rule:
    """Return a rule; `pattern` is searched in lines that are cleaned of stamps."""
    return Rule(kind, re.compile(pattern), starting)


#: How a line begins that tells of a GPU's error: with names of exceptions or functions, and what has failed. A GPU is
#: put out of use for what follows, so that it must not be what a client sent, which a log of requests quotes.
_GPU_ERROR = r"^(?:[\w.<>]+: )*(?:(?:CUDA|CUDA driver|HIP) error: |Cuda failure (?:\d+ )?')?"

#: Of the dynamic linker and of ggml's memory, whatever the engine is.
COMMON = (
    rule(
        FailureClass.MISSING_LIBRARY,
        r"error while loading shared libraries: |: symbol lookup error: |: version `\S+' not found \(required by",
    ),
    rule(
        FailureClass.GPU_LOST,
        # Not that there is no device: for want of a device file or of a fitting driver no GPU is seen, and all would be
        # put out of use in turn. Of one that is gone the driver tells.
        _GPU_ERROR + r"(?:GPU is lost|GPU has fallen off the bus|uncorrectable (?:NVLink|ECC) error"
        r"|cudaErrorECCUncorrectable|cudaErrorDevicesUnavailable|CUDA_ERROR_ECC_UNCORRECTABLE"
        r"|all CUDA-capable devices are busy or unavailable|CUDA-capable device\(s\) is/are busy or unavailable)",
        starting=False,
    ),
    rule(
        FailureClass.OUT_OF_GPU_MEMORY,
        r"cudaMalloc failed: out of memory|CUDA error: out of memory|CUDA out of memory|HIP out of memory"
        r"|torch\.OutOfMemoryError|ErrorOutOfDeviceMemory|Free memory on device .* is less than desired"
        r"|No available memory for the cache blocks",
        starting=False,
    ),
    rule(
        FailureClass.OUT_OF_MEMORY,
        r"std::bad_alloc|^MemoryError\b|[Cc]annot allocate memory|DefaultCPUAllocator: can't allocate memory",
        starting=False,
    ),
)


def clean(log_tail: str) -> list[str]:
    """Return the lines of a log without stamps and colours, empty ones left out; a carriage return ends one too."""
    lines = (_STAMPS.sub("", _COLOURS.sub("", line), count=1).strip() for line in re.split(r"[\r\n]+", log_tail))
    return [line for line in lines if line]


def since_ready(lines: Sequence[str], ready: re.Pattern[str]) -> tuple[list[str], bool]:
    """Return the lines that may explain a death, and whether the engine had become ready before it."""
    for index in range(len(lines) - 1, -1, -1):
        if ready.search(lines[index]):
            return list(lines[index + 1 :]), True
    return list(lines), False


def classify(exit: Exit, lines: Sequence[str], rules: Iterable[Rule], *, was_ready: bool) -> Failure:  # noqa: A002 - the name the event has
    """Return the class and the line of the first rule that matches, in the order of `rules`; a crash without one.

    A SIGKILL is nobody's message: what the engine had logged before it does not explain it.
    """
    if exit.signal != _KILLED:
        for known in rules:
            if known.starting and was_ready:
                continue
            for line in lines:
                if known.pattern.search(line):
                    return Failure(known.kind, clip(line))
    return Failure(FailureClass.CRASH, _crash(exit, lines))


def _crash(exit: Exit, lines: Sequence[str]) -> str:  # noqa: A002 - the name the event has
    words = str(exit)
    if exit.signal in _OWN_SIGNALS:
        words += f" ({_OWN_SIGNALS[exit.signal]})"
    if exit.signal == _KILLED:
        return words
    telling = [line for line in lines if _TELLING.search(line)] or list(lines)
    return f"{words}; last words: {clip(telling[-1])}" if telling else f"{words}, without a word"


_TELLING = re.compile(r"(?i)\berror\b|exception|assert|abort|fatal|failed|what\(\):|panic")
