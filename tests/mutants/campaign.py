"""A whole run: which mutants, before which judges, and what came of it in numbers."""

from __future__ import annotations

import ast
import random
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

from mutants import judge
from mutants.operators import OPERATORS
from mutants.pool import Tell, Verdict, judged
from mutants.survivors import Compared
from mutants.walk import Mutant, applied, modules, mutants

#: What the kill rate must be at least.
LEAST_RATE = 0.95


class CannotJudge(Exception):  # noqa: N818 - named for what it is
    """The unmutated core does not pass, so nothing can be said of mutants."""


class Campaign:
    """The core, its mutants, and the judges in the order of their price."""

    def __init__(self, folder: Path, seeds: list[int]) -> None:
        """Read the core in `folder`; it is not read again, so that edits meanwhile do no harm."""
        self._folder = folder
        self._trees = modules(folder)
        self._code = {name: self._compiled(name, tree) for name, tree in self._trees.items()}
        self._seeds = seeds
        self._tests = judge.test_modules()
        self.mutants = mutants(self._trees, OPERATORS)

    def _compiled(self, name: str, tree: ast.Module) -> CodeType:
        code: CodeType = compile(tree, str(self._folder / f"{name}.py"), "exec")
        return code

    def begin(self) -> Verdict:
        """Judge the unmutated core, and let the quick tests go first from now on; raises `CannotJudge`."""
        judge.warm_up()
        verdict = next(judged([None], self._judge, 1))
        if verdict.fate != "survived":
            raise CannotJudge(f"the core as it is does not pass: {verdict.by}; nothing is judged")
        self._tests.sort(key=lambda name: verdict.seconds[name.rpartition(".")[2]])
        return verdict

    def run(self, chosen: list[Mutant], jobs: int) -> Iterator[Verdict]:
        """Yield a verdict on each of the mutants as it comes."""
        return judged(chosen, self._judge, jobs)

    def _judge(self, mutant: Mutant | None, tell: Tell) -> str | None:
        code = dict(self._code)
        if mutant is not None:
            code[mutant.module] = self._compiled(mutant.module, applied(self._trees[mutant.module], mutant))
        tests = judge.judges(mutant.module if mutant else "", self._tests)
        try:
            judge.judge(code, self._folder, tests, self._seeds, tell)
        except judge.Killed as killed:
            return str(killed)
        return None


def sample(all_of_them: list[Mutant], justified: Collection[str], count: int, seed: int) -> list[Mutant]:
    """Return some mutants, of those that may survive as large a share as of the others, in their order."""
    rng = random.Random(seed)  # noqa: S311 - the seed is the point
    may = [mutant for mutant in all_of_them if mutant.name in justified]
    must_not = [mutant for mutant in all_of_them if mutant.name not in justified]
    share = min(1.0, count / max(1, len(all_of_them)))
    drawn = [mutant for group in (may, must_not) for mutant in rng.sample(group, round(len(group) * share))]
    order = {mutant.name: at for at, mutant in enumerate(all_of_them)}
    return sorted(drawn, key=lambda mutant: order[mutant.name])


@dataclass(frozen=True)
class Result:
    """What came of a run; `compared` is with survivors.txt. `sampled`: of a few mutants only."""

    verdicts: tuple[Verdict, ...]
    compared: Compared
    took_s: float
    sampled: bool = False

    @property
    def rate(self) -> float:
        """Return the share of mutants that were killed, in 0 to 1; of no mutants all were."""
        return 1 - len(self.of("survived")) / len(self.verdicts) if self.verdicts else 1.0

    @property
    def passed(self) -> bool:
        """Tell whether enough were killed, and every survivor is accounted for.

        A sample names survivors without a reason and does not fail for them: which ones it draws changes with every
        line of the core, so it would fail whoever changes one for what a whole run has to be asked about.
        """
        wrong = (self.compared.killed or self.compared.unknown) if self.sampled else self.compared
        return self.rate >= LEAST_RATE and not wrong

    def of(self, fate: str) -> list[Verdict]:
        """Return the verdicts of one kind."""
        return [verdict for verdict in self.verdicts if verdict.fate == fate]

    def table(self) -> dict[str, dict[str, int]]:
        """Return operator → mutants, killed and survived, the most frequent operator first."""
        rows: dict[str, dict[str, int]] = {}
        for operator, count in Counter(_mutant(item).operator for item in self.verdicts).most_common():
            own = [item for item in self.verdicts if _mutant(item).operator == operator]
            survived = sum(item.fate == "survived" for item in own)
            rows[operator] = {"mutants": count, "killed": count - survived, "survived": survived}
        return rows

    def killers(self) -> dict[str, int]:
        """Return who noticed first → how many mutants; all seeds together are the simulator."""
        names = [verdict.by.partition(":")[0] for verdict in self.verdicts if verdict.fate != "survived"]
        return dict(Counter("simulator" if name.startswith("seed ") else name for name in names).most_common())

    def plain(self) -> Mapping[str, object]:
        """Return the result as plain data."""
        return {
            "mutants": len(self.verdicts),
            "killed": len(self.of("killed")),
            "killed_by_limit": [_mutant(verdict).name for verdict in self.of("limit")],
            "survived": [_mutant(verdict).name for verdict in self.of("survived")],
            "rate": round(self.rate, 4),
            "passed": self.passed,
            "took_s": round(self.took_s, 1),
            "operators": self.table(),
            "killers": self.killers(),
            "unjustified": self.compared.unjustified,
            "justified_and_killed": self.compared.killed,
            "justified_and_unknown": self.compared.unknown,
        }

    def __str__(self) -> str:
        """Say it in words."""
        lines = [f"{'operator':18} {'mutants':>8} {'killed':>8} {'survived':>8}"]
        for operator, row in self.table().items():
            lines.append(f"{operator:18} {row['mutants']:>8} {row['killed']:>8} {row['survived']:>8}")
        lines.append("killed by: " + ", ".join(f"{name} {count}" for name, count in self.killers().items()))
        survived, limits = len(self.of("survived")), len(self.of("limit"))
        lines.append(
            f"{len(self.verdicts)} mutants, {len(self.verdicts) - survived} killed ({self.rate:.1%}; {limits} of them "
            f"by a limit of time or memory), {survived} survived, in {self.took_s:.0f} s"
        )
        if self.rate < LEAST_RATE:
            lines.append(f"that is less than {LEAST_RATE:.0%}")
        if self.compared:
            lines.append(str(self.compared))
        return "\n".join(lines)


def _mutant(verdict: Verdict) -> Mutant:
    assert verdict.mutant is not None
    return verdict.mutant
