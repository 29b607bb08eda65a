"""`python -m mutants`: change the core in every small way there is, and see that some test or seed notices."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent.parent.parent / "supervisor"))

from mutants import survivors
from mutants.campaign import Campaign, CannotJudge, Result, sample
from mutants.pool import NoVerdict, Verdict
from mutants.walk import Mutant

TESTS = Path(__file__).parent.parent
CORE = TESTS.parent / "supervisor" / "modelsupd" / "core"

#: Seconds between two lines of progress where there is no terminal.
_LINE_EVERY_S = 20.0
_DRAWN_EVERY_S = 0.2


def main(arguments: list[str] | None = None) -> int:
    """Judge; return 1 if too many survive or one is not accounted for, 2 if nothing could be judged."""
    # So that children are ended too; they do not hear of it by themselves.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    options = _options(arguments)
    began_at = time.monotonic()
    try:
        justified = survivors.read(survivors.FILE.read_text(encoding="utf-8"))
        campaign = Campaign(CORE, _seeds(options.seeds))
        chosen = _of_modules(campaign.mutants, options.only)
        if options.sample:
            chosen = sample(chosen, justified, options.sample, options.seed)
        if options.list:
            sys.stdout.writelines(f"{mutant}\n" for mutant in chosen)
            return 0
        campaign.begin()
        verdicts = []
        with _progress(len(chosen)) as show:
            for verdict in campaign.run(chosen, max(1, options.jobs)):
                verdicts.append(verdict)
                show(verdict)
    except (CannotJudge, NoVerdict, ValueError) as error:
        sys.stderr.write(f"cannot judge mutants: {error}\n")
        return 2
    known = [mutant.name for mutant in campaign.mutants]
    order = {mutant.name: at for at, mutant in enumerate(chosen)}
    verdicts.sort(key=lambda verdict: order[str(verdict.mutant)])
    survived = [str(verdict.mutant) for verdict in verdicts if verdict.fate == "survived"]
    compared = survivors.compare(justified, known, list(order), survived)
    result = Result(tuple(verdicts), compared, time.monotonic() - began_at, sampled=bool(options.sample))
    sys.stdout.write(f"{json.dumps(result.plain(), indent=1) if options.json else result}\n")
    return 0 if result.passed else 1


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mutants", description="Mutate the core, and see who notices.")
    parser.add_argument("--sample", type=int, metavar="N", help="only about N mutants, drawn with --seed")
    parser.add_argument("--seed", type=int, default=1, help="what draws the sample (default 1)")
    parser.add_argument("--only", action="append", metavar="MODULE", help="only this module of the core; repeatable")
    parser.add_argument("--jobs", type=int, default=min(2, os.cpu_count() or 1), help="at a time (default 2)")
    parser.add_argument("--seeds", type=int, default=100, help="of the simulator, beside the kept ones (default 100)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON; progress goes to stderr")
    parser.add_argument("--list", action="store_true", help="print the mutants and judge none")
    return parser.parse_args(arguments)


def _of_modules(mutants: list[Mutant], only: list[str] | None) -> list[Mutant]:
    known = {mutant.module for mutant in mutants}
    for name in set(only or ()) - known:
        raise ValueError(f"there are no mutants of a module '{name}'; there are of {', '.join(sorted(known))}")
    return [mutant for mutant in mutants if not only or mutant.module in only]


def _seeds(count: int) -> list[int]:
    """Return so many seeds from 0 on, and the kept ones that are not among them."""
    text = (TESTS / "sim" / "seeds.txt").read_text(encoding="utf-8")
    kept = [int(line.split()[0]) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [*range(count), *(seed for seed in kept if seed >= count)]


@contextmanager
def _progress(total: int) -> Iterator[Callable[[Verdict], None]]:
    """Yield what takes each verdict: a bar on a terminal, else a line now and then; survivors are named at once."""
    if not sys.stderr.isatty():
        yield _lines(total)
        return
    from rich.console import Console  # noqa: PLC0415 - only where there is a terminal
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415 - as above

    columns = (TextColumn("mutants"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[found]}"))
    # The console follows NO_COLOR by itself. No thread draws the bar: a process that forks has one thread.
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True), auto_refresh=False) as bar:
        task, survived, drawn_at = bar.add_task("mutants", total=total, found="none survived"), 0, 0.0

        def show(verdict: Verdict) -> None:
            nonlocal survived, drawn_at
            if verdict.fate == "survived":
                survived += 1
                bar.console.print(f"survived: {verdict.mutant}", markup=False, highlight=False)
            bar.update(task, advance=1, found=f"{survived} survived" if survived else "none survived")
            if time.monotonic() - drawn_at > _DRAWN_EVERY_S or bar.finished:
                bar.refresh()
                drawn_at = time.monotonic()

        yield show


def _lines(total: int) -> Callable[[Verdict], None]:
    began_at = shown_at = time.monotonic()
    done = survived = 0

    def show(verdict: Verdict) -> None:
        nonlocal done, survived, shown_at
        done += 1
        if verdict.fate == "survived":
            survived += 1
            sys.stderr.write(f"survived: {verdict.mutant}\n")
            sys.stderr.flush()
        now = time.monotonic()
        if now - shown_at > _LINE_EVERY_S or done == total:
            shown_at = now
            left_s = (now - began_at) / done * (total - done)
            sys.stderr.write(f"{done} of {total} mutants, {survived} survived, about {left_s:.0f} s left\n")
            sys.stderr.flush()

    return show


if __name__ == "__main__":
    if sys.flags.hash_randomization and not os.environ.get("PYTHONHASHSEED"):
        # With the same hashes a mutant meets the same end in every run.
        words = [sys.executable, "-m", "mutants", *sys.argv[1:]]
        os.execve(sys.executable, words, os.environ | {"PYTHONHASHSEED": "0"})  # noqa: S606 - ourselves again
    sys.exit(main())
