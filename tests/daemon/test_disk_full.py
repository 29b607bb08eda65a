"""A full disk below the state directory, for real: a small tmpfs in a mount namespace of the test's own."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from hosts import NAMESPACE, fake_model, fill, host


def test_a_crashed_engine_is_restarted_and_a_stop_refused_until_space_returns(place: Path) -> None:
    (place / "state").mkdir()
    mount = f"mount -t tmpfs -o size=6m,mode=0700 none {place}/state"
    if subprocess.run([*NAMESPACE, "sh", "-c", mount], check=False, capture_output=True).returncode != 0:
        pytest.skip("no tmpfs can be mounted in a namespace here (user namespaces are off)")
    with host(place, fake_model(), start=False) as daemon:
        daemon.start(wrapped=[*NAMESPACE, "sh", "-c", f'{mount} && exec "$@"', "sh"])
        first = daemon.until_phase("ready")
        assert daemon.daemon is not None
        # The files of the namespace are reached through the daemon's own root.
        state = Path(f"/proc/{daemon.daemon.pid}/root{place}/state")
        filler = state / "filler"
        fill(filler)
        os.kill(first["pid"], signal.SIGKILL)
        again = daemon.until_phase("ready", run=2)
        refused = daemon.run("stop", "m")
        assert refused.returncode == 1
        assert "space" in refused.stderr.lower()
        assert daemon.replica()["pid"] == again["pid"]
        assert daemon.client.status()["daemon"]["journal"]["read_only"]
        filler.unlink()
        assert daemon.run("stop", "m").returncode == 0
        daemon.until_phase("stopped")
        assert daemon.client.status()["daemon"]["journal"]["read_only"] is None
        assert daemon.stop() == 0
