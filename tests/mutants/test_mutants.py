"""The tool itself, on a core of a few lines with tests of its own: what is mutated, what is reported, what fails."""

from __future__ import annotations

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mutants import survivors
from mutants.campaign import Result, sample
from mutants.operators import OPERATORS
from mutants.pool import Fate, Verdict
from mutants.survivors import Compared
from mutants.walk import Mutant, applied, mutants

HERE = Path(__file__).parent

PARTS = {
    "actions": """
from dataclasses import dataclass

@dataclass
class Start:
    run: int

@dataclass
class Stop:
    run: int

Action = Start | Stop
""",
    "phases": '''
from dataclasses import dataclass
from enum import StrEnum

class Want(StrEnum):
    """What is wanted."""
    UP = "up"
    DOWN = "down"

@dataclass
class Idle:
    since: float

@dataclass
class Busy:
    since: float
    run: int
    tries: int = 0

@dataclass
class Done:
    since: float
    run: int

Phase = Idle | Busy | Done
''',
    "moves": '''
from modelsupd.core.actions import Start
from modelsupd.core.phases import Busy, Idle, Want

def begin(it: Item, now: float) -> Step:
    """Begin, if 1 < 2."""
    if isinstance(it.at, Idle) and it.want is Want.UP:
        words = "so" if now > 3 else "otherwise"
        return replace(it, phase=Busy(now, it.run + 1), reason=words), (Start(it.run + 1),)
    assert it.run > 0
    return it, ()
''',
}

EXPECTED = """
phases:Want:constant: UP = 'up' → UP = 'up_'
phases:Want:constant: DOWN = 'down' → DOWN = 'down_'
phases:Busy:constant: tries: int = 0 → tries: int = 1
phases:Busy:constant: tries: int = 0 → tries: int = -1
moves:begin:early return: its body → return (it, ())
moves:begin:boolean: if isinstance(it.at, Idle) and it.want is Want.UP → if True
moves:begin:boolean: if isinstance(it.at, Idle) and it.want is Want.UP → if False
moves:begin:boolean: isinstance(it.at, Idle) and it.want is Want.UP → isinstance(it.at, Idle) or it.want is Want.UP
moves:begin:boolean: isinstance(it.at, Idle) and it.want is Want.UP → it.want is Want.UP
moves:begin:boolean: isinstance(it.at, Idle) and it.want is Want.UP → isinstance(it.at, Idle)
moves:begin:comparison: isinstance(it.at, Idle) → not isinstance(it.at, Idle)
moves:begin:swapped phase: isinstance(it.at, Idle) → isinstance(it.at, Busy)
moves:begin:comparison: it.want is Want.UP → it.want is not Want.UP
moves:begin:swapped member: it.want is Want.UP → it.want is Want.DOWN
moves:begin:dropped statement: return (replace(it, phase=Busy(now, it.run + 1), reason=words), (Start → nothing
moves:begin:dropped field: replace(phase=Busy(now, it.run + 1)) → left out
moves:begin:dropped field: replace(reason=words) → left out
moves:begin:swapped phase: Busy(now, it.run + 1) → Idle(since=now)
moves:begin:swapped phase: Busy(now, it.run + 1) → Done(since=now, run=it.run + 1)
moves:begin:arithmetic: it.run + 1 → it.run - 1
moves:begin:arithmetic: it.run + 1 → it.run
moves:begin:constant: it.run + 1 → it.run + 2
moves:begin:constant: it.run + 1 → it.run + 0
moves:begin:dropped action: (Start(it.run + 1),) → ()
moves:begin:swapped action: Start(it.run + 1) → Stop(it.run + 1)
moves:begin:arithmetic: it.run + 1 → it.run - 1 #2
moves:begin:arithmetic: it.run + 1 → it.run #2
moves:begin:constant: it.run + 1 → it.run + 2 #2
moves:begin:constant: it.run + 1 → it.run + 0 #2
"""


def made(parts: dict[str, str]) -> tuple[dict[str, ast.Module], list[Mutant]]:
    trees = {name: ast.parse(text) for name, text in parts.items()}
    return trees, mutants(trees, OPERATORS)


def made_of(expression: str, head: str = "def f(a, b, x):\n    ") -> list[str]:
    _, found = made({"m": f"{head}return {expression}\n"})
    return [str(mutant).partition(": ")[2] for mutant in found]


# Operators


def test_what_the_operators_make_of_a_small_core() -> None:
    _, found = made(PARTS)
    assert "\n".join(map(str, found)) == EXPECTED.strip()


def test_every_mutant_can_be_compiled_differs_and_leaves_the_rest_alone() -> None:
    trees, found = made(PARTS)
    before = {name: ast.unparse(tree) for name, tree in trees.items()}
    for mutant in found:
        after = ast.unparse(applied(trees[mutant.module], mutant))
        compile(after, mutant.name, "exec")
        assert after != before[mutant.module], mutant
    assert {name: ast.unparse(tree) for name, tree in trees.items()} == before


def test_a_phase_that_a_module_does_not_know_is_imported() -> None:
    trees, found = made(PARTS)
    (mutant,) = [item for item in found if item.name.endswith("→ Done(since=now, run=it.run + 1)")]
    assert "from modelsupd.core.phases import Done" in ast.unparse(applied(trees["moves"], mutant))


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("a < b", ["a < b → a >= b", "a < b → a <= b"]),
        ("a not in b", ["a not in b → a in b"]),
        ("not a", ["not a → a"]),
        ("not a == b", ["not a == b → a == b"]),
        ("a if x else b", ["a if x else b → a", "a if x else b → b"]),
        ("True", ["True → False"]),
        ("2.5", ["2.5 → 3.5", "2.5 → 1.5", "2.5 → 0.0"]),
        ("min(a, b)", ["min(a, b) → max(a, b)", "min(a, b) → a", "min(a, b) → b"]),
        ("a['key']", ["a['key'] → a['key_']"]),
        ("{a, b}", ["a → left out", "b → left out"]),
        ("[i for i in a if i]", ["if i → if True", "if i → if False"]),
        (
            "'words ' + f'{a < b}'",
            ["'words ' + f'{a < b}' → 'words ' - f'{a < b}'", "'words ' + f'{a < b}' → 'words '"],
        ),
        ("'words'", []),
        ("f(a, why=a < b)", []),
        ("'one' if a else 'other'", []),
    ],
)
def test_what_becomes_of_an_expression(expression: str, expected: list[str]) -> None:
    assert made_of(expression) == expected


def test_what_becomes_of_statements() -> None:
    text = "def f(a):\n    a = g(a)\n    b = 1\n    if a:\n        h()\n        return b\n    a += 1\n    raise a\n"
    _, found = made({"m": text})
    dropped = [str(item).partition(": ")[2] for item in found if item.operator == "dropped statement"]
    assert dropped == ["a = g(a) → nothing", "h() → nothing", "return b → nothing", "a += 1 → nothing"]


def test_a_name_survives_edits_elsewhere() -> None:
    _, before = made(PARTS)
    moved = PARTS | {
        "moves": PARTS["moves"].replace("def begin", "LATER = 1\n\n\ndef another():\n    pass\n\n\ndef begin")
    }
    _, after = made(moved)
    assert {item.name for item in before} <= {item.name for item in after}


# The list of survivors


def test_a_reason_stands_above_its_mutants() -> None:
    text = "# words\n\n## because it\n## is so\nm:f:a → b\nm:g:a → b\n\n## another\nm:h:a → b\n"
    assert survivors.read(text) == {
        "m:f:a → b": "because it is so",
        "m:g:a → b": "because it is so",
        "m:h:a → b": "another",
    }
    with pytest.raises(ValueError, match="line 1 names a mutant before any reason: m:f"):
        survivors.read("m:f:a → b\n")
    with pytest.raises(ValueError, match="line 3 names a mutant for the second time: m:f"):
        survivors.read("## so\nm:f\nm:f\n")


def test_what_is_wrong_with_a_list() -> None:
    compared = survivors.compare(["kept", "killed", "gone", "not judged"], ["kept", "killed", "new", "not judged"],
                                 ["kept", "killed", "new"], ["kept", "new"])  # fmt: skip
    assert (compared.unjustified, compared.killed, compared.unknown) == (("new",), ("killed",), ("gone",))
    assert not survivors.compare(["kept"], ["kept"], ["kept"], ["kept"])


def test_a_sample_has_its_share_of_those_that_may_survive() -> None:
    _, found = made(PARTS)
    may = {mutant.name for mutant in found[:10]}
    drawn = sample(found, may, 14, seed=1)
    assert len(drawn) == 14
    assert sum(mutant.name in may for mutant in drawn) == 5
    assert drawn == sample(found, may, 14, seed=1) != sample(found, may, 14, seed=2)
    assert sample(found, may, 1000, seed=1) == found


# The whole, in processes of their own

_CORE = '''
"""A core of a few lines."""

LIMIT = 3


def clamped(value, most):
    """Return the value, or what it is at most."""
    return most if value > most else value


def spent(calls):
    """Return what so many calls take, counted down."""
    total = 0
    while calls > 0:
        calls -= 1
        total += LIMIT
    return total


def seen_by_the_simulator_alone(value):
    """Return one more."""
    return value + 1


def parity(value):
    """Tell even from odd."""
    return value % 2 == 0
'''

_TESTS = """
import pytest

from modelsupd.core.small import clamped, parity, spent


@pytest.mark.parametrize(("value", "expected"), [(2, 2), (4, 4), (5, 4)])
def test_clamped(value, expected):
    assert clamped(value, 4) == expected


@pytest.mark.parametrize("calls", [0, 1, 5])
def test_spent(calls):
    assert spent(calls) == 3 * calls


def test_parity():
    assert [parity(value) for value in range(4)] == [True, False, True, False]
"""

_SIMULATOR = """
from types import SimpleNamespace

from modelsupd.core.small import seen_by_the_simulator_alone


def play(seed):
    broken = [] if seen_by_the_simulator_alone(seed) == seed + 1 else ["it is not one more"]
    return SimpleNamespace(broken=broken, coverage=Coverage())


class Coverage:
    def add(self, other):
        pass
"""

#: What no test can tell.
_SURVIVOR = "small:clamped:boundary: value > most → value >= most"
_EQUIVALENT = f"## At the bound itself the value is the bound.\n{_SURVIVOR}\n"


@pytest.fixture
def house(place: Path) -> Path:
    """Return a folder laid out like ours, with the tool in it and a core of a few lines."""
    for folder in ("tests/core", "tests/sim", "supervisor/modelsupd/core"):
        (place / folder).mkdir(parents=True)
    shutil.copytree(HERE, place / "tests/mutants", ignore=shutil.ignore_patterns("test_*", "__pycache__"))
    (place / "supervisor/modelsupd/__init__.py").touch()
    (place / "supervisor/modelsupd/core/__init__.py").touch()
    (place / "supervisor/modelsupd/core/small.py").write_text(_CORE)
    (place / "tests/core/test_core_small.py").write_text(_TESTS)
    (place / "tests/sim/play.py").write_text(_SIMULATOR)
    (place / "tests/sim/seeds.txt").write_text("7 a kept one\n")
    (place / "tests/mutants/survivors.txt").write_text(_EQUIVALENT)
    # Time is short here.
    judge = place / "tests/mutants/judge.py"
    judge.write_text(re.sub("LIMIT_CPU_S = [0-9]+", "LIMIT_CPU_S = 0.3", judge.read_text()))
    return place


def run(house: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "mutants", "--seeds", "2", *arguments],
        cwd=house / "tests",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + (done.stderr if done.returncode == 2 else "")


def test_a_core_that_is_tested_well_passes(house: Path) -> None:
    status, words = run(house, "--json")
    result = json.loads(words)
    assert status == 0, words
    assert result["survived"] == [_SURVIVOR]
    assert result["mutants"] == result["killed"] + len(result["killed_by_limit"]) + 1
    # Counting up where it should count down goes on for ever.
    assert "small:spent:arithmetic: calls -= 1 → calls += 1" in result["killed_by_limit"]
    assert result["killers"]["simulator"] == 4
    assert result["rate"] > 0.95


def test_a_list_that_is_not_what_survived_fails(house: Path) -> None:
    killed = "small:parity:comparison: value % 2 == 0 → value % 2 != 0"
    (house / "tests/mutants/survivors.txt").write_text(f"## Because.\n{killed}\nsmall:nowhere:comparison: a → b\n")
    status, words = run(house)
    assert status == 1, words
    assert words.endswith(
        "survived, and survivors.txt has no reason why they may; add a test, or the reason:\n"
        f"  {_SURVIVOR}\n"
        "in survivors.txt, and killed; take them out:\n"
        f"  {killed}\n"
        "in survivors.txt, and there is no such mutant; take them out or name what became of them:\n"
        "  small:nowhere:comparison: a → b\n"
    )


def test_too_many_survivors_fail_whatever_the_list_says(house: Path) -> None:
    path = house / "tests/core/test_core_small.py"
    path.write_text(path.read_text().replace("def test_spent", "def no_test"))
    (house / "tests/mutants/survivors.txt").write_text("## All may.\n" + run(house, "--list")[1])
    status, words = run(house)
    assert status == 1, words
    assert "that is less than 95%" in words
    assert "has no reason" not in words


def test_nothing_is_judged_by_tests_that_fail_anyway(house: Path) -> None:
    (house / "tests/core/test_core_more.py").write_text("def test_with_a_fixture(place):\n    pass\n")
    status, words = run(house)
    assert status == 2
    assert "cannot judge mutants: the core as it is does not pass: test_core_more: TypeError" in words


def test_a_judge_that_breaks_is_no_verdict(house: Path) -> None:
    path = house / "tests/mutants/judge.py"
    path.write_text(
        path.read_text().replace("    resource.setrlimit(", "    raise OSError('no space')\n    resource(", 1)
    )
    status, words = run(house)
    assert (status, words) == (2, "cannot judge mutants: no verdict on the core as it is: OSError('no space')\n")


def test_a_sample_is_judged_by_its_rate_and_a_whole_run_by_each_survivor() -> None:
    killed = (Verdict(None, "killed", "a test", 0.1),) * 99
    cases: tuple[tuple[Fate, bool, bool], ...] = (
        ("survived", True, True),
        ("survived", False, False),
        ("killed", False, True),
    )
    for last, sampled, passed in cases:
        unjustified = ("m:f:constant: 0 → 1",) if last == "survived" else ()
        compared = Compared(unjustified, (), ())
        assert Result((*killed, Verdict(None, last, "", 0.1)), compared, 1.0, sampled=sampled).passed is passed
    assert not Result(killed, Compared((), ("listed and killed",), ()), 1.0, sampled=True).passed
    few = (*killed[:9], Verdict(None, "survived", "", 0.1))
    assert not Result(few, Compared((), (), ()), 1.0, sampled=True).passed


def test_a_sample_of_one_module_and_the_list(house: Path) -> None:
    status, words = run(house, "--only", "small", "--sample", "9", "--seed", "3", "--json")
    assert status == 0, words
    assert 7 <= json.loads(words)["mutants"] <= 9
    unknown = "cannot judge mutants: there are no mutants of a module 'smal'; there are of small\n"
    assert run(house, "--only", "smal") == (2, unknown)
    assert len(run(house, "--list")[1].splitlines()) > 20
