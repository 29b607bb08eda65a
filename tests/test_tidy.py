"""The rules of the house, read from the syntax trees: who may import whom, how long things get, and why exceptions are.

An exception to a limit stands in one of the tables below, with its reason. A rule is changed here, not worked around.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
SOURCE = REPOSITORY / "supervisor" / "modelsupd"

FILE_LINES = 400
FUNCTION_LINES = 70

#: Path → why it may be longer. Generated tables and nothing else, so far.
LONG_FILES: dict[str, str] = {}

#: What core may import beside itself: modules that shape data and touch nothing else.
DATA_MODULES = frozenset(
    """
    __future__ abc bisect collections collections.abc copy dataclasses difflib enum fractions functools hashlib heapq
    itertools json math operator re string types typing zlib
    """.split()  # noqa: SIM905 - thirty quoted names are harder to read than thirty words
)

#: What core may not call: each reaches outside, or differs from one process to the next.
IMPURE_CALLS = frozenset(
    {"__import__", "breakpoint", "eval", "exec", "globals", "hash", "id", "input", "open", "print"}
)

#: Part → the parts that it may import, beside itself. DESIGN, "Layout".
MAY_IMPORT: dict[str, frozenset[str]] = {
    part: frozenset(others.split())
    for part, others in {
        "core": "",
        "errors": "core",
        "engines": "core",
        "weights": "core errors",
        "config": "core engines errors weights",
        "runtime": "core engines weights errors runtime.shim gateway.base gateway.channel gateway.wire",
        "runtime.shim": "",
        # Of control only the port, through which it reads what was published.
        "metrics": "core control errors weights.base gpu_metrics",
        "gpu_metrics": "",
        "narrator": "core weights.base",
        "adoption": "core runtime",
        "rounds": "core runtime",
        "departure": "core narrator runtime",
        "followers": "runtime",
        "on_demand": "core runtime",
        "gatekeeper": "config core engines gateway runtime",
        "control": "core errors weights.base",
        "gateway": "core errors",
        # `run` starts the daemon, `reap` and `journal` work without one; the other verbs speak with it.
        "cli": "core engines errors config weights control daemon narrator gateway.keyfile"
        " runtime.installed runtime.journal runtime.paths runtime.reap",
        "daemon": "*",
    }.items()
}

#: Imports against that table: (file, imported module) → why.
EXCEPTIONS: dict[tuple[str, str], str] = {}

#: Hosts of package registries: a mirror may stand in for them, so no file of ours says where packages come from.
#: In pieces, because this file is one of ours.
REGISTRIES = (("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "org"), ("crates", "io"), ("debian", "org"))

#: What may lie at the top: whatever serves only one developer's tools belongs into that developer's own settings.
TOP = frozenset(
    """
    .ci .gitignore CHANGELOG.md CONTRIBUTING.md LICENSE Makefile README.md bench constraints.txt docs fuzz models.toml
    pyproject.toml supervisor tests tools units
    """.split()  # noqa: SIM905 - as above
)


def sources() -> list[Path]:
    folders = [REPOSITORY / name for name in ("supervisor", "tests", "tools", "bench", "fuzz")]
    return sorted(path for folder in folders for path in folder.rglob("*.py"))


def shown(path: Path) -> str:
    return str(path.relative_to(REPOSITORY))


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def module_of(path: Path) -> str:
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """Return the part of the table that a module of ours belongs to: the longest one that names it."""
    inner = module.removeprefix("modelsupd").removeprefix(".")
    known = [part for part in MAY_IMPORT if inner == part or inner.startswith(part + ".")]
    return max(known, key=len, default=inner)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and full name of every module that a file imports, wherever in the file."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path).rpartition(".")[0]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, name.name) for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for name in node.names:
                inner = f"{base}.{name.name}"
                yield node.lineno, inner if is_module(inner) else base


def is_module(name: str) -> bool:
    where = SOURCE.parent / Path(*name.split("."))
    return name.startswith("modelsupd") and (where.with_suffix(".py").exists() or (where / "__init__.py").exists())


def allowed(path: Path, module: str) -> bool:
    mine = part_of(module_of(path))
    theirs = part_of(module)
    inner = module.removeprefix("modelsupd.")
    may = MAY_IMPORT[mine]
    return (
        mine == theirs
        or module == "modelsupd"  # its version
        or "*" in may
        or any(inner == part or inner.startswith(part + ".") for part in may)
    )


@pytest.mark.parametrize(
    ("importer", "module", "may"),
    [
        ("core/replica.py", "modelsupd.core.events", True),
        ("core/replica.py", "modelsupd.runtime.driver", False),
        ("core/replica.py", "modelsupd.errors", False),
        ("engines/base.py", "modelsupd.runtime.http", False),
        ("runtime/driver.py", "modelsupd.core.replica", True),
        ("runtime/driver.py", "modelsupd.control.server", False),
        ("runtime/process.py", "modelsupd.runtime.shim.tree", True),
        ("runtime/shim/shim.py", "modelsupd.runtime.paths", False),
        ("runtime/shim/shim.py", "modelsupd.runtime.shim.log", True),
        ("control/server.py", "modelsupd.daemon", False),
        ("cli/main.py", "modelsupd.runtime.journal.reader", True),
        ("cli/main.py", "modelsupd.runtime.driver", False),
        ("daemon.py", "modelsupd.runtime.driver", True),
    ],
)
def test_what_the_table_means(importer: str, module: str, may: bool) -> None:
    assert allowed(SOURCE / importer, module) is may


def test_every_part_is_in_the_table() -> None:
    top = {path.stem for path in SOURCE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert top - {"__init__", "__main__"} <= set(MAY_IMPORT)


def test_imports_run_one_way() -> None:
    wrong = [
        f"{shown(path)}:{line} imports {module}"
        for path in sorted(SOURCE.rglob("*.py"))
        if path.stem != "__main__" and module_of(path) != "modelsupd"
        for line, module in imports(path)
        if module.split(".")[0] == "modelsupd" and not allowed(path, module) and (shown(path), module) not in EXCEPTIONS
    ]
    assert not wrong, "\n".join(wrong)


def test_core_imports_only_what_shapes_data_and_calls_nothing_that_reaches_outside() -> None:
    wrong = []
    for path in sorted((SOURCE / "core").rglob("*.py")):
        wrong += [
            f"{shown(path)}:{line} imports {module}"
            for line, module in imports(path)
            if module.split(".")[0] != "modelsupd" and module not in DATA_MODULES
        ]
        wrong += [
            f"{shown(path)}:{node.lineno} calls {node.func.id}"
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in IMPURE_CALLS
        ]
        wrong += [
            f"{shown(path)}:{node.lineno} is a coroutine or changes a global"
            for node in ast.walk(tree(path))
            if isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.Global | ast.Nonlocal)
        ]
    assert not wrong, "\n".join(wrong)


def test_shim_and_spawner_need_the_standard_library_alone() -> None:
    outside = {
        module.split(".")[0] for path in (SOURCE / "runtime" / "shim").glob("*.py") for _, module in imports(path)
    }

    assert outside <= {"modelsupd", *sys.stdlib_module_names}


def test_only_the_driver_calls_step() -> None:
    callers = {
        shown(path)
        for path in SOURCE.rglob("*.py")
        if not module_of(path).startswith("modelsupd.core")
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("modelsupd.core")
        and any(name.name == "step" for name in node.names)
    }
    assert callers <= {"supervisor/modelsupd/runtime/driver.py"}


def test_no_file_is_too_long_to_be_read() -> None:
    lengths = {shown(path): len(path.read_text(encoding="utf-8").splitlines()) for path in sources()}
    assert {name: count for name, count in lengths.items() if count > FILE_LINES and name not in LONG_FILES} == {}
    assert all(lengths.get(name, 0) > FILE_LINES for name in LONG_FILES), "an exception that is none any more"


def test_no_function_is_too_long_to_be_read() -> None:
    long = [
        f"{shown(path)}:{node.lineno} {node.name}: {node.end_lineno - node.lineno + 1} lines"
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno is not None
        and node.end_lineno - node.lineno >= FUNCTION_LINES
    ]
    assert not long, "\n".join(long)


_SILENCER = re.compile(r"\b(?:ruff:\s*)?(?:noqa\b|type:\s*ignore|mypy:|pragma:|pylint:)")
_CODED = re.compile(r"\b(?:ruff: )?noqa: [A-Z]+[0-9]+(?:, [A-Z]+[0-9]+)*|\btype: ignore\[[a-z, -]+\]")
_WORDS = re.compile(r"[A-Za-z]{3,}")


def unexplained(text: str) -> list[int]:
    """Return the lines whose comment silences a tool without codes, or without a reason beside them."""
    found: list[int] = []
    if not _SILENCER.search(text):
        return found
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        # A comment that only speaks of silencers has its words before them, and no # of their own.
        if token.type != tokenize.COMMENT or not re.search(r"#\s*" + _SILENCER.pattern[2:], token.string):
            continue
        rest = _CODED.sub("", token.string)
        if _SILENCER.search(rest) or not _WORDS.search(rest):
            found.append(token.start[0])
    return found


def test_every_silenced_warning_says_why() -> None:
    wrong = [f"{shown(path)}:{line}" for path in sources() for line in unexplained(path.read_text(encoding="utf-8"))]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("comment", "explained"),
    [
        ("# noqa", False),
        ("# noqa: S603", False),
        ("# noqa: S603 - our own arguments", True),
        ("# noqa: S603, S607 - our own arguments", True),
        ("# type: ignore", False),
        ("# type: ignore[arg-type]", False),
        ("# type: ignore[arg-type]  # every caller passes one", True),
        ("# type: ignore[arg-type] # noqa: S603", False),
        ("# type: ignore[arg-type] # noqa: S603 - constants", True),
        ("# the reason comes first  # noqa: S603", True),
        ("# ruff: noqa: PTH108", False),
        ("# ruff: noqa: PTH108 - strings keep it small", True),
        ("# an ordinary remark about noqa", True),
    ],
)
def test_what_counts_as_a_reason(comment: str, explained: bool) -> None:
    assert bool(unexplained(f"x = 1  {comment}\n")) is not explained


def test_nothing_is_left_open() -> None:
    open_ends = re.compile(r"\b(?:TODO|FIXME|XXX|HACK)\b")
    wrong = []
    for path in sources():
        text = path.read_text(encoding="utf-8")
        # Most files hold no such word anywhere, and reading text is cheap beside reading tokens.
        if not open_ends.search(text) and "NotImplementedError" not in text:
            continue
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        wrong += [
            f"{shown(path)}:{token.start[0]} {token.string}"
            for token in tokens
            if token.type == tokenize.COMMENT and open_ends.search(token.string)
        ]
        wrong += [
            f"{shown(path)}:{node.lineno} NotImplementedError"
            for node in ast.walk(tree(path))
            if isinstance(node, ast.Name) and node.id == "NotImplementedError"
        ]
    assert not wrong, "\n".join(wrong)


def files_of_ours() -> list[Path]:
    """Return what git has or would take, so that caches and environments do not count."""
    listed = subprocess.run(
        ["git", "-C", REPOSITORY, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("this is no git checkout, or there is no git")
    paths = {REPOSITORY / name for name in listed.stdout.decode().split("\0") if name}
    return sorted(path for path in paths if path.is_file())


def test_the_top_folder_holds_only_what_the_project_needs() -> None:
    assert {path.relative_to(REPOSITORY).parts[0] for path in files_of_ours()} <= TOP


def test_no_file_names_a_registry_or_somebody_s_home() -> None:
    hosts = "|".join(rf"\b{name}\.{domain}\b" for name, domain in REGISTRIES)
    words = re.compile(rf"{hosts}|/root/[a-z.]".encode())
    wrong = [
        f"{shown(path)}:{number} {found[0].decode()}"
        for path in files_of_ours()
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
        if (found := words.search(line))
    ]
    assert not wrong, "\n".join(wrong)


def test_every_test_that_the_page_on_faults_names_is_there() -> None:
    """A name without a file, as `::test_x`, is one of the file that was named last."""
    tests, file, wrong = REPOSITORY / "tests", "", []
    for path, name in re.findall(r"`([a-z_/]+\.py)?(?:::(test_\w+))?`", (REPOSITORY / "docs/faults.md").read_text()):
        file = path or file
        if (path or name) and not re.search(rf"def {name}\b", (tests / file).read_text()):
            wrong.append(f"{file}::{name}")
    assert not wrong, "\n".join(wrong)
