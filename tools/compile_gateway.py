"""Compiles the gateway's request path to C with mypyc, as a wheel's build does: `compile_gateway.py SOURCE TARGET`.

Without arguments it only tells whether it could.

SOURCE holds the package `modelsupd`; what is built goes to TARGET, with the paths that it has below a site-packages.
The modules stay as they are and run uncompiled too, at a third of the speed: nothing but speed depends on this. So it
is no error if there is no C compiler or no header of this Python; code that mypyc does not take is one.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

#: What every request, or every piece of an answer, passes through. They import of others only the standard library,
#: httptools and structlog, and are compiled as one, so that calls between them are those of C.
MODULES = (
    "api",
    "body",
    "connection",
    "desk",
    "ends",
    "errors",
    "exchange",
    "finals",
    "front",
    "heads",
    "line",
    "parsing",
    "ports",
    "record",
    "relay",
    "request",
    "service",
    "serving",
    "sse",
    "suspects",
    "tally",
    "traffic",
    "upstream",
    "usage",
    "waiting",
)

_SETUP = """
import sys
from mypyc.build import mypycify
from setuptools import setup
sys.argv[1:] = []
setup(
    name="modelsupd",
    packages=[],
    ext_modules=mypycify({paths!r}, opt_level="2", debug_level="0", group_name="modelsupd_gateway"),
    script_args=["--quiet", "build_ext", "--inplace"],
)
"""


def lacking() -> str | None:
    """Return what is missing to compile anything; None where nothing is."""
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    if shutil.which(compiler[0]) is None:
        return f"no C compiler: '{compiler[0]}' is not on PATH"
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        return "no headers of this Python; on Debian, apt-get install python3-dev"
    # Tried, since a compiler may be there without the headers of the C library, or one that this Python was built by.
    with tempfile.TemporaryDirectory(prefix="modelsupd-compile-") as folder:
        Path(folder, "tried.c").write_text("#include <Python.h>\n")
        tried = [*compiler, f"-I{include}", "-c", "tried.c", "-o", "tried.o"]
        if subprocess.run(tried, cwd=folder, check=False, capture_output=True).returncode != 0:
            return f"'{shlex.join(compiler)}' compiles nothing that includes Python.h"
    return None


def compile_into(source: Path, target: Path) -> list[str]:
    """Compile, and return what was built, relative to `target`. Raises CalledProcessError where it cannot be."""
    paths = [f"modelsupd/gateway/{name}.py" for name in MODULES]
    with tempfile.TemporaryDirectory(prefix="modelsupd-compile-") as folder:
        shutil.copytree(
            source / "modelsupd", f"{folder}/modelsupd", ignore=shutil.ignore_patterns("*.so", "__pycache__")
        )
        # In a process of its own: setuptools and mypyc change the process that they run in.
        script = _SETUP.format(paths=["--ignore-missing-imports", *paths])
        subprocess.run([sys.executable, "-c", script], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        built = [path for path in Path(folder).rglob("*.so") if "build" not in path.relative_to(folder).parts]
        for path in built:
            place = target / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, place)
        return [str(path.relative_to(folder)) for path in built]


if __name__ == "__main__":
    missing = lacking()
    if missing is not None:
        sys.exit(f"cannot compile: {missing}")
    if sys.argv[1:]:
        print(*compile_into(Path(sys.argv[1]), Path(sys.argv[2])), sep="\n")
