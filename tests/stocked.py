"""A configuration whose weights come from a mock hub, and the command line in this very process."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from hosts import small_gguf
from mock_hub import MockHub
from modelsupd.cli import main
from modelsupd.weights.base import Pinned
from modelsupd.weights.lock import read

SIZE = 1 << 18
FILE = "m.gguf"
NAME = f"org/m/{FILE}"
CONTENT = small_gguf(size_bytes=SIZE)


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:  # noqa: ANN401 - JSON
        """Return what it printed with --json."""
        return json.loads(self.out)

    @property
    def events(self) -> list[dict[str, Any]]:
        """Return the events that it printed with --json."""
        return [json.loads(line) for line in self.out.splitlines()]


class Stocked:
    """A folder with models.toml, and a hub."""

    def __init__(self, place: Path, hub: MockHub) -> None:
        self.place, self.hub = place, hub
        self.config, self.lock_file = place / "models.toml", place / "models.lock"
        self.cache = place / "hub"
        place.mkdir(exist_ok=True)
        self.declare({"m": f"hf:{NAME}"})

    def declare(self, sources: Mapping[str, str | Path], more: str = "", extra: str = "") -> None:
        """Write models.toml: each model with its weights and `extra` settings; `more` goes into [weights]."""
        weights = (
            f"[weights]\nendpoint = '{self.hub.url}'\ncache_dir = '{self.cache}'\nattempts = 2\npart_bytes = 65536\n"
            f"backoff_initial_s = 0.02\nbackoff_max_s = 0.05\nstall_timeout_s = 5\nmin_free_bytes = 0\n{more}\n"
        )
        models = [
            f"[models.{name}]\nengine = 'llama.cpp'\nweights = '{source}'\n{extra}\n"
            for name, source in sources.items()
        ]
        daemon = f"[daemon]\nstate_dir = '{self.place / 'state'}'\nruntime_dir = '{self.place / 'run'}'\n"
        self.config.write_text(daemon + weights + "\n".join(models))

    def command(self, *words: str) -> list[str]:
        """Return the same for a process of its own."""
        return [sys.executable, "-m", "modelsupd", "--config", str(self.config), *words]

    def run(self, *words: str) -> Done:
        """Run a command here."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), mock.patch.dict(os.environ):
            code: Any = 0
            try:
                main(["--config", str(self.config), *words])
            except SystemExit as ended:
                code = ended.code or 0
        return Done(code, out.getvalue(), err.getvalue())

    def apart(self, *words: str, wrapped: Sequence[str] = ()) -> Done:
        """Run a command in a process of its own."""
        command = [*wrapped, *self.command(*words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        return Done(done.returncode, done.stdout, done.stderr)

    def locked(self) -> dict[str, Pinned]:
        """Return what the lock file says, by source."""
        return {entry.source: entry for entry in read(self.lock_file).entries}

    def state(self, model: str = "m") -> str:
        """Return what `list` says of a model's first part."""
        (found,) = [one for one in self.run("list", "--json").document["models"] if one["name"] == model]
        return str(found["parts"][0]["state"])

    def blob(self) -> Path:
        """Return the file of the cache that holds org/m's only file."""
        return self.cache / "models--org--m" / "blobs" / self.hub.repos["org/m"].file(FILE).etag


def open_to_others() -> list[str]:
    """Return what root puts before a command so that another user, too, can read the interpreter that runs it.

    One that lies in a private folder is put in its place again, in a mount namespace of the command's own.
    """
    prefix = Path(sys.base_prefix).resolve()
    private = next((folder for folder in reversed(prefix.parents) if not folder.stat().st_mode & 0o001), None)
    if private is None:
        return []
    if any(Path(path).resolve().is_relative_to(private) for path in (sys.prefix, __file__)):
        pytest.skip(f"other users cannot reach '{private}', in which this repository or its environment lies")
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode:
        pytest.skip("there are no mount namespaces here, not even for root")
    script = (
        'mkdir -p "$1" && mount --bind "$2" "$1" && mount -t tmpfs -o mode=755 none "$3" && mkdir -p "$2" '
        '&& mount --move "$1" "$2" && shift 3 && exec "$@"'
    )
    aside = tempfile.mkdtemp() + "/aside"
    return [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "sh",
        "-c",
        script,
        "sh",
        aside,
        str(prefix),
        str(private),
    ]


@contextlib.contextmanager
def stocked(place: Path) -> Iterator[Stocked]:
    """Yield a folder whose one model is of one file of the hub."""
    with MockHub() as hub:
        hub.add("org/m", {FILE: CONTENT, "README.md": b"hello"}, lfs={FILE})
        yield Stocked(place, hub)
