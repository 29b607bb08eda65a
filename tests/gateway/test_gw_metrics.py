"""What is scraped, and the admin socket that it is scraped from."""

from __future__ import annotations

import asyncio
import contextlib
import json
import stat
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from modelsupd.gateway import metrics
from modelsupd.gateway.admin import Admin
from modelsupd.gateway.base import Api, EndedBy
from modelsupd.gateway.metrics import Now
from modelsupd.gateway.own_process import OwnProcess
from modelsupd.gateway.record import Entry
from modelsupd.gateway.tally import Distribution, Tally


def entry(**others: object) -> Entry:
    fields: dict[str, Any] = {"id": "r", "at": 0.0, "api": Api.CHAT, "model": "qwen", "run": "qwen/0#7", "status": 200}
    return Entry(**(fields | others))


def samples(tally: Tally, now: Now | None = None) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return name and labels → value, as a Prometheus reads them; buckets left out."""
    return {
        (sample.name.removeprefix("modelsupd_gateway_"), tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.text(tally, now or Now()).decode())
        for sample in family.samples
        if not sample.name.endswith("_bucket")
    }


def of(model: str, replica: str, **labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted({"model": model, "replica": replica, **labels}.items()))


def test_what_is_counted_of_requests() -> None:
    tally = Tally()
    tally.count(entry(tokens_in=10, tokens_out=5, ttft_s=0.2, duration_s=1.0, stream=True, queue_s=0.05, bytes_out=7))
    tally.count(entry(run="qwen/0#8", status=502, retries=2, error="stalled", events=3, bytes_in=4))
    tally.count(entry(model="", run="", status=404))
    tally.count(entry(ended_by=EndedBy.CLIENT))
    tally.failed("org/qwen/0#9", "refused")
    seen = samples(tally)
    mine = of("qwen", "qwen/0")
    assert seen["requests_total", of("qwen", "qwen/0", code="200")] == 2
    assert seen["requests_total", of("qwen", "qwen/0", code="502")] == 1
    assert seen["requests_total", of("", "", code="404")] == 1
    assert seen["tokens_total", of("qwen", "qwen/0", direction="in")] == 10
    assert seen["tokens_total", of("qwen", "qwen/0", direction="out")] == 8
    assert seen["bytes_total", of("qwen", "qwen/0", direction="out")] == 7
    assert seen["bytes_total", of("qwen", "qwen/0", direction="in")] == 4
    assert [seen[name, mine] for name in ("retries_total", "stalls_total", "client_aborts_total")] == [2, 1, 1]
    assert seen["failures_total", of("org/qwen", "org/qwen/0", kind="refused")] == 1
    assert seen["first_token_seconds_count", mine] == 1
    assert seen["first_token_seconds_sum", mine] == pytest.approx(0.2)
    assert seen["inter_token_seconds_count", mine] == 4
    assert seen["inter_token_seconds_sum", mine] == pytest.approx(0.8)
    assert seen["queue_seconds_count", (("model", "qwen"),)] == 3


def test_what_is_read_at_the_moment_of_a_scrape() -> None:
    now = Now(
        in_flight={"qwen/0#7": 2, "qwen/0#8": 1, "tiny/1#1": 0},
        queued={"qwen": 4},
        connections=9,
        accepting=True,
        table_seq=12,
        records_dropped=3,
        accepted=20,
        refused={431: 2, 503: 1},
    )
    seen = samples(Tally(), now)
    assert seen["requests_in_flight", of("qwen", "qwen/0")] == 3
    assert seen["requests_in_flight", of("tiny", "tiny/1")] == 0
    assert seen["requests_queued", (("model", "qwen"),)] == 4
    assert [seen[name, ()] for name in ("connections", "accepting", "daemon_connected", "table_seq")] == [9, 1, 0, 12]
    assert seen["records_dropped_total", ()] == 3
    assert seen["accepted_total", ()] == 20
    assert [seen["refused_total", (("code", code),)] for code in ("431", "503")] == [2, 1]
    assert any(name == "process_resident_memory_bytes" for name, _ in seen)


def test_no_label_is_anything_that_a_client_made_up() -> None:
    tally = Tally()
    tally.count(entry(model="", run="", asked="secret-prompt", key="alice", id="made-up", error="not_found"))
    text = metrics.text(tally, Now()).decode()
    assert not any(word in text for word in ("secret-prompt", "made-up", "alice"))


def test_buckets_hold_all_that_is_below_their_bound() -> None:
    seen = Distribution((1.0, 2.0))
    for value, times in ((0.5, 1), (1.0, 2), (1.5, 1), (9.0, 3)):
        seen.observe(value, times)
    assert seen.buckets() == [("1.0", 3.0), ("2.0", 4.0), ("+Inf", 7.0)]
    assert seen.total == 31.0


def test_a_scrape_while_requests_are_counted_sees_whole_numbers() -> None:
    tally, end = Tally(), threading.Event()

    def scrape() -> None:
        while not end.is_set():
            samples(tally)

    thread = threading.Thread(target=scrape)
    thread.start()
    for number in range(3000):
        tally.count(entry(model=f"m{number % 300}", run=f"m{number % 300}/0#1", status=200 + number % 7))
    end.set()
    thread.join()
    counted = sum(value for (name, _), value in samples(tally).items() if name == "requests_total")
    assert counted == 3000


# The admin socket


async def ask(path: Path, request: bytes) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 10)
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), body


def test_the_admin_socket_answers_its_owner_and_nobody_else(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "engine.sock"
        path.write_text("left by an earlier process")
        admin = Admin(lambda: {"accepting": True}, lambda: b"m 1\n")
        admin.listen(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await ask(path, b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n") == (
            200,
            b'{"accepting": true, "late_s": 0.0}',
        )
        assert await ask(path, b"GET /metrics?x=1 HTTP/1.1\r\n\r\n") == (200, b"m 1\n")
        assert (await ask(path, b"GET /other HTTP/1.1\r\n\r\n"))[0] == 404
        assert (await ask(path, b"POST /health HTTP/1.1\r\n\r\n"))[0] == 405
        assert (await ask(path, b"\xff\x00\r\n\r\n"))[0] == 405
        assert (await ask(path, b"G" * 20000))[0] == 431
        assert "error" in json.loads((await ask(path, b"GET / HTTP/1.1\r\n\r\n"))[1])
        admin.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_health_is_told_while_a_crowd_holds_the_loop_up_and_not_while_the_loop_hangs(tmp_path: Path) -> None:
    late_s = [1.5]

    async def main() -> None:
        admin = Admin(dict, lambda: b"m 1\n", lambda: late_s[0])
        admin.listen(tmp_path / "a.sock")
        path = tmp_path / "a.sock"
        asked = asyncio.create_task(ask(path, b"GET /health HTTP/1.1\r\n\r\n"))
        assert await asked == (200, b'{"late_s": 1.5}')
        late_s[0] = 3.0
        asked = asyncio.create_task(ask(path, b"GET /health HTTP/1.1\r\n\r\n"))
        assert (await ask(path, b"GET /metrics HTTP/1.1\r\n\r\n"))[0] == 200
        assert not asked.done()
        late_s[0] = 0.0
        assert (await asked)[0] == 200
        late_s[0] = 3.0
        asked = asyncio.create_task(ask(path, b"GET /health HTTP/1.1\r\n\r\n"))
        assert (await ask(path, b"GET /metrics HTTP/1.1\r\n\r\n"))[0] == 200
        admin.close()
        with contextlib.suppress(IndexError, ConnectionError):
            await asked

    asyncio.run(main())


def test_when_the_process_began_is_known_without_files_that_a_container_may_lack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read_text = Path.read_text

    def of_this_process(path: Path) -> str:
        if not path.is_relative_to("/proc/self"):
            raise FileNotFoundError(path)
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", of_this_process)
    made = OwnProcess()
    monkeypatch.undo()
    [began_at] = [m.samples[0].value for m in made.collect() if m.name == "process_start_time_seconds"]
    assert abs(began_at - psutil.Process().create_time()) < 2
