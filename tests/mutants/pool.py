"""A child for each mutant, some at a time, and what became of it."""

from __future__ import annotations

import gc
import os
import selectors
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

from mutants.walk import Mutant

#: Wall-clock seconds for one mutant. Its judges have limits of their own, in CPU time; this is for one that sleeps.
LIMIT_S = 900.0

Fate = Literal["killed", "limit", "survived"]
Tell = Callable[[str], None]


class NoVerdict(Exception):  # noqa: N818 - named for what is missing
    """A judge broke, and not for the mutant: nothing can be said of it."""


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant: killed, and by whom; killed by a limit, and before whom; or survived."""

    mutant: Mutant | None
    fate: Fate
    by: str
    took_s: float
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass
class _Child:
    mutant: Mutant | None
    pid: int
    pipe: int
    began_at: float
    said: bytes = b""


def judged(
    mutants: Iterable[Mutant | None], judge: Callable[[Mutant | None, Tell], str | None], jobs: int
) -> Iterator[Verdict]:
    """Yield a verdict on each mutant as it comes; None is the unmutated code. At most `jobs` children at a time.

    `judge` runs in the child and returns who noticed, None if nobody did; what it tells is kept for the verdict.
    """
    waiting, children = list(mutants)[::-1], dict[int, _Child]()
    # What is there now is for all children; collecting it in each would copy its pages.
    gc.collect()
    gc.freeze()
    with selectors.DefaultSelector() as selector:
        try:
            while waiting or children:
                while waiting and len(children) < jobs:
                    child = _start(waiting.pop(), judge, list(children))
                    children[child.pipe] = child
                    selector.register(child.pipe, selectors.EVENT_READ)
                for key, _ in selector.select(timeout=1.0):
                    child = children[key.fd]
                    data = os.read(key.fd, 1 << 16)
                    child.said += data
                    if not data:
                        selector.unregister(key.fd)
                        yield _ended(children.pop(key.fd))
                for child in children.values():
                    if time.monotonic() > child.began_at + LIMIT_S:
                        os.kill(child.pid, signal.SIGKILL)
        finally:
            gc.unfreeze()
            for child in children.values():
                with suppress(ProcessLookupError):
                    os.kill(child.pid, signal.SIGKILL)
                os.waitpid(child.pid, 0)
                os.close(child.pipe)


def _start(mutant: Mutant | None, judge: Callable[[Mutant | None, Tell], str | None], others: list[int]) -> _Child:
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            for pipe in (ours, *others):
                os.close(pipe)
            _be_quiet()

            def tell(words: str) -> None:
                os.write(theirs, f"{words}\n".encode())

            by = judge(mutant, tell)
            tell("= survived" if by is None else f"= {by.splitlines()[0][:200]}")
            status = 0
        except Exception as error:  # noqa: BLE001 - whatever it is, the parent has to know that this is no verdict
            tell(f"! {error!r}")
        finally:
            # Whatever happened: a child must never go on as if it were the parent.
            os._exit(status)
    os.close(theirs)
    return _Child(mutant, pid, ours, time.monotonic())


def _be_quiet() -> None:
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)


def _ended(child: _Child) -> Verdict:
    os.close(child.pipe)
    _, status = os.waitpid(child.pid, 0)
    took_s = time.monotonic() - child.began_at
    lines = child.said.decode(errors="replace").splitlines()
    seconds: dict[str, float] = {}
    for line in lines:
        name, _, spent = line.rpartition(" ")
        with suppress(ValueError):
            seconds[name] = float(spent) if "." in spent else seconds.get(name, 0.0)
    last = lines[-1] if lines else "nobody"
    if os.WIFSIGNALED(status):
        return Verdict(child.mutant, "limit", last, took_s, seconds)
    if not last.startswith("= "):
        raise NoVerdict(f"no verdict on {child.mutant or 'the core as it is'}: {last.removeprefix('! ')}")
    by = last.removeprefix("= ")
    return Verdict(child.mutant, "survived" if by == "survived" else "killed", by, took_s, seconds)
