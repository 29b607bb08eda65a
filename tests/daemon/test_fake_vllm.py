"""The daemon with what looks like vLLM: its ways without its weight. The real one is in test_real_vllm."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import fake_engine
import tiny_llama
from hosts import QUICK, Host, alive, fake, host, settled, whys
from waiting import until


@pytest.fixture
def tiny(place: Path) -> Path:
    folder = place / "tiny"
    tiny_llama.write(folder, context_length=64)
    for file in folder.iterdir():
        settled(file)
    return folder


def model(place: Path, tiny: Path, args: str = "max_model_len = 64", limits: str = QUICK) -> str:
    python = place / "python"
    if not python.exists():
        fake_engine.install_vllm(place)
    return (
        f"[engines.vllm]\npython = '{python}'\n[models.m]\nengine = 'vllm'\nweights = '{tiny}'\n"
        f"[models.m.args]\n{args}\n{limits.format(name='m')}"
    )


def kept(daemon: Host) -> list[Path]:
    return sorted((daemon.state / "engines").iterdir()) if (daemon.state / "engines").exists() else []


def test_it_is_started_as_declared_and_asked_for_its_flags_once(place: Path, tiny: Path) -> None:
    with host(place, model(place, tiny)) as daemon:
        ready = daemon.until_phase("ready")
        told = fake(ready["endpoint"])
        assert told["argv"][1:4] == ["-m", "vllm.entrypoints.cli.main", "serve"]
        assert (Path(told["argv"][4]) / "config.json").resolve() == (tiny / "config.json").resolve()
        assert told["argv"][-2:] == ["--max-model-len", "64"]
        run_dir = Path(ready["endpoint"].removeprefix("unix:")).parent
        assert told["environ"]["VLLM_RPC_BASE_PATH"] == str(run_dir)
        assert told["environ"]["VLLM_CACHE_ROOT"] == str(daemon.state / "cache" / "m" / "vllm")
        assert told["environ"]["SPT_NOENV"] == "1"
        (file,) = kept(daemon)
        asked_at = file.stat().st_mtime_ns

        # An exit with 0 that nobody asked for is a crash, as of a server whose engine died.
        fake(ready["endpoint"], exit_after_s=0.2)
        assert daemon.until_phase("ready", run=2)["restarts"] == 1
        assert "exit code 0" in whys(daemon)
        assert [path.stat().st_mtime_ns for path in kept(daemon)] == [asked_at]


def test_a_flag_that_is_not_known_never_starts_it(place: Path, tiny: Path) -> None:
    wrong = model(place, tiny, "max_model_lenn = 64\nheadless_ = true")
    with host(place, wrong, start=False) as daemon:
        daemon.state.mkdir()
        checked = daemon.run("check")
        assert checked.returncode == 2
        assert "models.m.args.max_model_lenn = 64: is no flag of the installed vLLM; did you mean" in checked.stderr
        assert "2 problems" in checked.stderr
        daemon.start()
        failed = daemon.until_phase("failed")
        assert failed["reason"].startswith("bad-flag: args.max_model_lenn = 64 is no flag of the installed vLLM")
        assert (failed["run"], failed["restarts"]) == (1, 0)
        daemon.declare(model(place, tiny))
        assert daemon.run("reload").returncode == 0
        daemon.until_phase("ready")


def test_what_the_installed_one_does_not_tell_its_own_last_words_do(place: Path, tiny: Path) -> None:
    text = model(place, tiny, "nonsense = 1")
    python = place / "python"
    python.write_text(
        python.read_text().replace("import fake_engine", "'--help=all' in sys.argv and sys.exit(3)\nimport fake_engine")
    )
    with host(place, text) as daemon:
        failed = daemon.until_phase("failed")
        assert failed["reason"].startswith("bad-flag: main.py serve: error: unrecognized arguments: --nonsense")
        assert (failed["run"], failed["restarts"]) == (1, 0)
        assert kept(daemon) == []


def test_a_stop_while_it_loads_does_not_wait_for_sigterm(place: Path, tiny: Path) -> None:
    limits = QUICK.replace("term_timeout_s = 2", "term_timeout_s = 60\nload_term_timeout_s = 0.2")
    with host(place, model(place, tiny, "load_s = 60", limits=limits)) as daemon:
        starting = daemon.until_phase("starting")
        until(lambda: "% Completed" in daemon.run("logs", "m").stdout)
        asked_at = time.monotonic()
        daemon.client.command("stop", "m")
        daemon.until_phase("stopped")
        assert time.monotonic() - asked_at < 30, "SIGTERM alone is waited for twice as long"
        assert not alive(starting["pid"])
