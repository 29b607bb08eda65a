"""Provide a Python interpreter that has llama-cpp-python: one set up earlier, or one set up now.

It is installed from the source package that `llama_server.py` pins, without compiling anything: its libraries are
those beside the `llama-server` that was built from the same package. The environment is kept in the same cache, and
what it holds is pinned here to the version, by which the cache is keyed as well.

Prints the path of the interpreter on stdout; everything else goes to stderr.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import llama_server
from llama_server import BuildError, say

#: What the server of llama-cpp-python 0.3.36 needs, and what builds its package: the set that the tests passed with.
PINS = (
    "annotated-doc==0.0.7",
    "annotated-types==0.8.0",
    "anyio==4.16.0",
    "click==8.5.1",
    "diskcache==5.6.3",
    "fastapi==0.165.0",
    "h11==0.16.0",
    "idna==3.20",
    "jinja2==3.1.6",
    "MarkupSafe==3.0.4",
    "numpy==2.4.6",
    "opentelemetry-api==1.45.2",
    "packaging==26.3",
    "pathspec==1.1.1",
    "pydantic==2.14.3",
    "pydantic-core==2.50.4",
    "pydantic-settings==2.16.3",
    "python-dotenv==1.2.4",
    "PyYAML==6.0.3",
    "scikit-build-core==1.1.2",
    "sse-starlette==3.7.0",
    "starlette==1.10.0",
    "starlette-context==0.3.6",
    "typing-extensions==4.16.0",
    "typing-inspection==0.4.5",
    "uvicorn==0.54.0",
)

#: Of the libraries, those that the package loads; they load the others, by `$ORIGIN`.
LIBRARIES = ("libllama.so", "libggml.so", "libmtmd.so")


def folder() -> Path:
    """Return the folder of this version with these pins, these libraries and this Python."""
    version = "{}.{}".format(*sys.version_info)
    key = hashlib.sha256("\0".join((str(llama_server.build_dir()), version, *PINS)).encode()).hexdigest()[:12]
    return llama_server.cache_dir() / f"llama-cpp-python-{llama_server.VERSION}-{key}"


def interpreter() -> Path:
    """Return where the interpreter is, or will be."""
    return folder() / "venv" / "bin" / "python"


def find() -> Path | None:
    """Return an interpreter that was set up earlier and has its libraries still."""
    whole = (folder() / "ready").exists() and all((libraries() / name).exists() for name in LIBRARIES)
    return interpreter() if whole and interpreter().exists() else None


def libraries() -> Path:
    """Return the folder of the built `llama-server`, which holds llama.cpp's shared libraries."""
    return llama_server.build_dir() / "bin"


def pip(*words: str, env: dict[str, str] | None = None) -> None:
    """Run the environment's own pip, its words to stderr."""
    command = [str(interpreter()), "-m", "pip", "--quiet", "--disable-pip-version-check", *words]
    done = subprocess.run(command, stdout=sys.stderr, env={**os.environ, **(env or {})}, check=False)
    if done.returncode != 0:
        raise BuildError(f"cannot set up {folder()}: pip {words[0]} exited with {done.returncode}; see above")


def install() -> None:
    """Set the environment up from nothing."""
    say.print(f"setting up llama-cpp-python {llama_server.VERSION} (once, half a minute; nothing is compiled)")
    here = folder()
    shutil.rmtree(here / "venv", ignore_errors=True)
    # Symlinks, as `python -m venv` does it: a copied interpreter may not find its libc.
    venv.create(here / "venv", with_pip=True, symlinks=True)
    pip("install", "--no-deps", *PINS)
    archive = llama_server.fetch(llama_server.build_dir())
    # The package's own switch for "without llama.cpp". No cache: this wheel is no use to anyone else.
    wheels = here / "wheels"
    building = {"CMAKE_ARGS": "-DLLAMA_BUILD=OFF", "PATH": f"{interpreter().parent}:{os.environ['PATH']}"}
    isolated = ("--no-deps", "--no-build-isolation", "--no-cache-dir")
    pip("wheel", *isolated, "--wheel-dir", str(wheels), str(archive), env=building)
    pip("install", "--no-deps", "--no-index", *map(str, wheels.glob("*.whl")))
    shutil.rmtree(wheels)
    link()
    (here / "ready").touch()


def link() -> None:
    """Put the libraries where the package looks for them; LLAMA_CPP_LIB_PATH would cover only one of its three."""
    asked = [str(interpreter()), "-c", "import importlib.util as u; print(u.find_spec('llama_cpp').origin)"]
    package = Path(subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()).parent
    (package / "lib").symlink_to(libraries())


def provide() -> Path:
    """Return an interpreter that can import llama_cpp and its server, setting it up when there is none."""
    if find() is None:
        if not shutil.which("cmake"):
            raise BuildError(
                "cannot set up llama-cpp-python: 'cmake' is not on PATH (on Debian: apt-get install cmake)"
            )
        llama_server.build()  # also where another llama-server is on PATH: its libraries may be of another version
        folder().mkdir(parents=True, exist_ok=True)
        with (folder() / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if find() is None:
                install()
    found = interpreter()
    check = subprocess.run(
        [found, "-c", "import llama_cpp.server.app, llama_cpp.mtmd_cpp"], capture_output=True, text=True, check=False
    )
    if check.returncode != 0:
        raise BuildError(f"cannot use {found}: {check.stderr.strip()}")
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--no-build", action="store_true", help="fail when there is none, instead of setting one up")
    arguments = parser.parse_args()
    if arguments.no_build and find() is None:
        raise SystemExit("there is no llama-cpp-python in the cache, and --no-build was given")
    try:
        path = provide()
    except BuildError as error:
        say.print(str(error), markup=False, highlight=False)
        sys.exit(1)
    say.print(f"[bold]llama-cpp-python[/] {path}", highlight=False)
    print(path)


if __name__ == "__main__":
    main()
