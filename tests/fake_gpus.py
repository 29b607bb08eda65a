"""GPUs for tests: a fake libnvidia-ml that is built here, and the files that drive it (see gpus/fake_nvml.c)."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from hosts import QUICK

GIB = 1024**3
HERE = Path(__file__).parent
ENGINE = HERE / "gpu_engine.py"

#: Of `[gpus]`, so that a test is quick.
LOOKS = """
[gpus]
nvml = "{nvml}"
interval_s = 0.1
answer_timeout_s = {answer_s}
memory_timeout_s = {memory_s}
reserve_bytes = 0
"""


@functools.cache
def library() -> Path:
    """Return the fake library, built once for all tests of this process."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "the tests of GPUs need a C compiler"
    built = Path(tempfile.mkdtemp(prefix="nvml")) / "libnvidia-ml.so.1"
    source = HERE / "gpus" / "fake_nvml.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", built, source, "-ldl"], check=True)
    return built


@dataclass(frozen=True)
class Card:
    """One GPU as its driver tells of it."""

    uuid: str
    total: int = 8 * GIB
    base: int = 0
    lost: bool = False
    ecc: int = 0
    celsius: int = 40
    clocks: int = 0
    pending: int = 0
    failure: int = 0
    mig: int = 0
    name: str = "Fake RTX"

    def line(self) -> str:
        numbers = (
            self.total, self.base, int(self.lost), self.ecc, self.celsius, self.clocks, self.pending, self.failure,
            self.mig,
        )  # fmt: skip
        return f"{self.uuid} {' '.join(map(str, numbers))} {self.name}\n"


class Cards:
    """A host's GPUs, in a folder of their own."""

    def __init__(self, folder: Path, *sizes_gib: int) -> None:
        self.folder = folder
        (folder / "alloc").mkdir(parents=True)
        self.nvml = folder / "libnvidia-ml.so.1"
        shutil.copy(library(), self.nvml)
        self.cards = [Card(f"GPU-{number}", size * GIB) for number, size in enumerate(sizes_gib)]
        self.write()

    def write(self) -> None:
        new = self.folder / "gpus.new"
        new.write_text("".join(card.line() for card in self.cards))
        new.rename(self.folder / "gpus")

    def change(self, index: int, **changes: object) -> None:
        """Change what the driver tells of a GPU."""
        self.cards[index] = replace(self.cards[index], **changes)  # type: ignore[arg-type]  # fields by name
        self.write()

    def set(self, name: str, text: str | None = "") -> None:
        """Put one of the files there that drive the library, or take it away."""
        if text is None:
            (self.folder / name).unlink(missing_ok=True)
        else:
            (self.folder / name).write_text(text)

    def xid(self, index: int, number: int) -> None:
        with (self.folder / "xids").open("a") as file:
            file.write(f"{self.cards[index].uuid} {number}\n")

    def take(self, pid: int, index: int, size: int) -> None:
        """Have a process use memory of a GPU."""
        (self.folder / "alloc" / f"{pid}.{self.cards[index].uuid}").write_text(str(size))

    def config(self, *models: str, answer_s: float = 5, memory_s: float = 5) -> str:
        """Return a configuration that reads these GPUs."""
        return LOOKS.format(nvml=self.nvml, answer_s=answer_s, memory_s=memory_s) + "".join(models)

    def model(
        self, name: str, *flags: str, use_gib: float = 1, gpus: object = 1, extra: str = "", placement: str = ""
    ) -> str:
        """Return a model of an engine that takes so much of each GPU that it sees."""
        command = [
            *(sys.executable, "-E", "-S", str(ENGINE)),
            *(str(self.folder), str(int(use_gib * GIB))),
            *("--uds", "{socket}", *flags),
        ]
        return (
            f"[models.{name}]\nengine = 'command'\ncommand = {json.dumps(command)}\n"
            f"gpus = {json.dumps(gpus)}\n{extra}\n"
            f"[models.{name}.placement]\n{placement}\n{QUICK.format(name=name)}"
        )
