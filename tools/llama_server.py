"""Provide a `llama-server`: the one on PATH, one built earlier, or one built now; `llama-fit-params` beside it.

The sources are those inside the llama-cpp-python source package, whose version and sha256 are pinned here, because
it is the one place from which a package registry hands out llama.cpp. There is one build for the demo and the tests;
it is kept in a cache outside the checkout (`MODELSUPD_ENGINE_CACHE`, by default `modelsupd/engines` in the user's
cache directory) and an interrupted build goes on where it stopped.

Prints the path of the binary on stdout; everything else goes to stderr.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

PACKAGE = "llama-cpp-python"
VERSION = "0.3.36"
SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"

#: The second says how much memory a model takes, which the tests hold our own estimate against.
TARGETS = ("llama-server", "llama-fit-params")

#: Shared libraries, so that the Python binding can be pointed at the same ones; found beside the binary by
#: `$ORIGIN`, so that the result can be moved. `GGML_NATIVE=OFF` keeps a cached build usable on another machine.
CMAKE_FLAGS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DBUILD_SHARED_LIBS=ON",
    "-DCMAKE_BUILD_WITH_INSTALL_RPATH=ON",
    "-DCMAKE_INSTALL_RPATH=$ORIGIN",
    "-DLLAMA_ALL_WARNINGS=OFF",
    "-DLLAMA_BUILD_TESTS=OFF",
    "-DLLAMA_BUILD_EXAMPLES=OFF",
    "-DLLAMA_BUILD_APP=OFF",
    "-DLLAMA_USE_PREBUILT_UI=OFF",
    "-DLLAMA_OPENSSL=OFF",
    "-DGGML_NATIVE=OFF",
)

#: What was measured on two cores of a 2026 cloud machine, for the word given before the wait.
MEASURED_CORE_MINUTES = 9

say = Console(stderr=True)


class BuildError(Exception):
    """Something that the reader can act on; shown without a traceback."""


def cache_dir() -> Path:
    """Return the folder that holds engine builds, outside any checkout."""
    named = os.environ.get("MODELSUPD_ENGINE_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "modelsupd" / "engines"


def build_dir() -> Path:
    """Return the folder of this version, these flags and these programs: a change of any is another build."""
    key = hashlib.sha256("\0".join((SHA256, *CMAKE_FLAGS, *TARGETS)).encode()).hexdigest()[:12]
    return cache_dir() / f"llama.cpp-{VERSION}-{key}"


def find() -> Path | None:
    """Return a `llama-server` that exists already: on PATH, or built earlier."""
    on_path = shutil.which("llama-server")
    if on_path:
        return Path(on_path)
    built = build_dir() / "bin" / "llama-server"
    return built if built.exists() else None


def fit_params() -> Path | None:
    """Return the `llama-fit-params` that lies beside what `find` returns, if there is one: it is of the same build."""
    server = find()
    beside = server.resolve().with_name("llama-fit-params") if server else None
    return beside if beside and beside.exists() else None


def fetch(into: Path) -> Path:
    """Download the source package with pip and check its sha256; return the archive's path."""
    archive = into / f"{PACKAGE.replace('-', '_')}-{VERSION}.tar.gz"
    if not archive.exists():
        say.print(f"[bold]1/3[/] fetching {PACKAGE} {VERSION} (75 MB, for the llama.cpp sources in it)")
        wanted = ["--no-deps", "--no-binary", PACKAGE, f"{PACKAGE}=={VERSION}", "--dest", str(into)]
        done = subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", *wanted], stdout=sys.stderr, check=False
        )
        if done.returncode != 0 or not archive.exists():
            raise BuildError(
                f"cannot fetch {PACKAGE} {VERSION}: pip exited with {done.returncode}; its words are above"
            )
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != SHA256:
        archive.unlink()
        raise BuildError(f"cannot use {archive.name}: its sha256 is {digest}, not the pinned {SHA256}")
    return archive


def unpack(archive: Path, into: Path) -> Path:
    """Unpack the llama.cpp part of the archive; return its source folder."""
    root = f"{PACKAGE.replace('-', '_')}-{VERSION}/vendor/llama.cpp"
    source = into / "src" / root
    if not source.exists():
        partial = into / "src.partial"
        shutil.rmtree(partial, ignore_errors=True)
        with tarfile.open(archive) as tar:
            wanted = [member for member in tar.getmembers() if member.name.startswith(root + "/")]
            tar.extractall(partial, members=wanted, filter="data")
        partial.rename(into / "src")
    return source


def compile_server(source: Path, into: Path) -> None:
    """Configure and build, with a progress bar drawn from the build tool's own counts."""
    for tool in ("cmake", "c++"):
        if not shutil.which(tool):
            raise BuildError(
                f"cannot build llama-server: '{tool}' is not on PATH (on Debian: apt-get install cmake g++)"
            )
    build = into / "build"
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    jobs = len(os.sched_getaffinity(0))
    minutes = max(1, round(MEASURED_CORE_MINUTES / jobs))
    say.print(
        f"[bold]2/3[/] compiling llama.cpp: about {minutes} minutes on {jobs} cores, once; "
        "Ctrl-C is safe, the next try goes on from there"
    )
    log = into / "build.log"
    with log.open("ab") as out:
        configure = ["cmake", "-S", str(source), "-B", str(build), *generator, *CMAKE_FLAGS]
        if subprocess.run(configure, stdout=out, stderr=out, check=False).returncode != 0:
            raise BuildError(failure("configure", log))
    run_build(["cmake", "--build", str(build), "--target", *TARGETS, "--parallel", str(jobs)], log)
    staging = into / "bin.partial"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    for path in (build / "bin").iterdir():
        if path.name in TARGETS or ".so" in path.name:
            shutil.copy2(path, staging / path.name, follow_symlinks=False)
    staging.rename(into / "bin")


def run_build(command: list[str], log: Path) -> None:
    """Run the build, its output to `log`, its counts (`[3/400]` of ninja, `[ 12%]` of make) to a bar."""
    counts = re.compile(r"^\[\s*(\d+)(?:/(\d+)|%)\]")
    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    with log.open("a") as out, Progress(*columns, console=say) as bar:
        task = bar.add_task("", total=100)
        build = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        shown, last = 0, time.monotonic()
        for line in build.stdout or ():
            out.write(line)
            seen = counts.match(line)
            if not seen:
                continue
            percent = 100 * int(seen[1]) // int(seen[2] or 100)
            bar.update(task, completed=percent)
            if not say.is_terminal and percent >= shown + 5:
                shown = percent
                say.print(f"  {percent:3d} %  {time.monotonic() - last:.0f} s")
        if build.wait() != 0:
            raise BuildError(failure("build", log))


def failure(what: str, log: Path) -> str:
    """Return an error text that ends with the last lines of the build's log."""
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    return f"cannot {what} llama.cpp; the last lines of {log}:\n{tail}"


def build() -> None:
    """Build this version with these flags, unless that was done earlier."""
    into = build_dir()
    into.mkdir(parents=True, exist_ok=True)
    with (into / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (into / "bin").exists():
            compile_server(unpack(fetch(into), into), into)
            shutil.rmtree(into / "build")
            shutil.rmtree(into / "src")


def provide() -> Path:
    """Return a `llama-server` that runs, building it when there is none."""
    found = find()
    if found is None:
        build()
        found = find()
    if found is None:
        raise BuildError("cannot find the llama-server that was just built")
    check = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)
    if check.returncode != 0:
        raise BuildError(f"cannot run {found}: exit {check.returncode}: {check.stderr.strip()}")
    return found


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--no-build", action="store_true", help="fail when there is none, instead of building")
    arguments = parser.parse_args()
    if arguments.no_build and find() is None:
        raise SystemExit("there is no llama-server on PATH or in the cache, and --no-build was given")
    try:
        path = provide()
    except BuildError as error:
        say.print(str(error), markup=False, highlight=False)
        sys.exit(1)
    say.print(f"[bold]llama-server[/] {path}", highlight=False)
    print(path)


if __name__ == "__main__":
    main()
