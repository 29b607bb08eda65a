"""One mutant before its judges: the tests of the core, then the simulator. Runs in a child that has it loaded.

Three rules:

1. A mutant is loaded like any module, by an importer that stands before all others, so everything that a module does
   when it is imported is mutated too. The parent has imported what is not ours and none of ours.
2. A test is called as pytest would call it, once for each of its parameters, without pytest, which would take longer
   than most mutants live. Fixtures are not provided; a test of the core that asked for one would fail unmutated, and
   `python -m mutants` then refuses to judge anything.
3. Hypothesis is derandomized and keeps no examples, so that the same mutant meets the same end tomorrow.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.util
import itertools
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from mutants.walk import PACKAGE

TESTS = Path(__file__).parent.parent

#: CPU seconds that one test module or one seed may take: many times what they take, which is at most 3 and 1.
LIMIT_CPU_S = 20

#: Memory that a mutant may take beyond what its parent has, in bytes.
LIMIT_BYTES = 2 << 30

#: Packages that are ours, and must not be there before the mutant is.
_OURS = ("modelsupd", "core", "sim")

#: By how many seeds the simulator has to reach everything; the kept ones come before them.
REACHES_ALL_BY = 50


class Killed(Exception):  # noqa: N818 - named for what happened
    """Somebody noticed the mutant."""


class _Importer(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Loads the core from code in memory: nobody's edit on disk meanwhile can mix with what is judged."""

    def __init__(self, code: Mapping[str, CodeType], folder: Path) -> None:
        self._code = {f"{PACKAGE}.{name}": item for name, item in code.items()}
        self._folder = folder

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        del path, target
        if fullname not in self._code:
            return None
        origin = str(self._folder / f"{fullname.rpartition('.')[2]}.py")
        return importlib.util.spec_from_loader(fullname, self, origin=origin)

    def exec_module(self, module: ModuleType) -> None:
        exec(self._code[module.__name__], module.__dict__)  # noqa: S102 - that is what an importer does


def warm_up() -> None:
    """Import once all that is not ours, and none of ours; the children inherit it."""
    from hypothesis import Phase, settings  # noqa: PLC0415 - the profile has to stand before the tests are imported

    settings.register_profile(
        "mutants", derandomize=True, database=None, deadline=None, phases=[Phase.explicit, Phase.generate]
    )
    settings.load_profile("mutants")
    for name in (*test_modules(), "sim.play"):
        importlib.import_module(name)
    for name in list(sys.modules):
        if name.partition(".")[0] in _OURS:
            del sys.modules[name]


def test_modules() -> list[str]:
    """Return the names of the modules with tests of the core."""
    return sorted(f"core.{path.stem}" for path in (TESTS / "core").glob("test_*.py"))


def judges(module: str, tests: list[str]) -> list[str]:
    """Return the test modules in the order in which they judge: those of the mutated module, then as given."""
    return sorted(tests, key=lambda name: f"_{module}" not in name)


def judge(
    code: Mapping[str, CodeType], folder: Path, tests: list[str], seeds: list[int], tell: Callable[[str], None]
) -> None:
    """Let every judge look; raise `Killed` for the first that notices. `tell` gets the name of each and its seconds."""
    resource.setrlimit(resource.RLIMIT_AS, (_virtual_bytes() + LIMIT_BYTES,) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.meta_path.insert(0, _Importer(code, folder))
    for name in tests:
        _watched(name.rpartition(".")[2], lambda name=name: _run_tests(name), tell)  # type: ignore[misc]  # bound by its default
    play = _Simulator()
    for seed in seeds:
        _watched(f"seed {seed}", lambda seed=seed: play(seed), tell)  # type: ignore[misc]  # as above


def _watched(name: str, run: Callable[[], None], tell: Callable[[str], None]) -> None:
    """Run one judge with a limit of its own, so that a mutant that loops for ever is found out soon."""
    tell(name)
    began_at = time.process_time()
    # A signal that nobody handles ends the process; the parent knows who was judging.
    signal.setitimer(signal.ITIMER_PROF, LIMIT_CPU_S)
    try:
        run()
    except BaseException as error:  # pytest's own failures are no Exception
        raise Killed(f"{name}: {type(error).__name__}") from error
    tell(f"{name} {time.process_time() - began_at:.3f}")


def _run_tests(name: str) -> None:
    module = importlib.import_module(name)
    for test_name, test in list(vars(module).items()):
        if test_name.startswith("test_") and callable(test):
            for arguments in _cases(test):
                test(**arguments)


def _cases(test: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 - any test function
    """Yield the arguments for each call of a test, as its `parametrize` marks have them."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    rows = []
    for mark in marks:
        names, values = mark.args
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        rows.append([dict(zip(names, value if len(names) > 1 else (value,), strict=True)) for value in values])
    for chosen in itertools.product(*rows):
        yield {name: value for row in chosen for name, value in row.items()}


class _Simulator:
    """Plays seeds, and after enough of them asks whether everything was reached."""

    def __init__(self) -> None:
        self._played = 0
        self._coverage: Any = None

    def __call__(self, seed: int) -> None:
        # Imported here, with the mutant in it.
        play: Any = importlib.import_module("sim.play")
        outcome = play.play(seed)
        if outcome.broken:
            raise Killed(outcome.broken[0])
        self._coverage = self._coverage or type(outcome.coverage)()
        self._coverage.add(outcome.coverage)
        self._played += 1
        if self._played == REACHES_ALL_BY and play.unreached(self._coverage):
            raise Killed("something is never reached")


def _virtual_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * os.sysconf("SC_PAGE_SIZE")
