"""Keys: the file, who is served with and without one, limits of a key, and the file's changes while it is in use."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import structlog.testing

from modelsupd.errors import ModelsupdError
from modelsupd.gateway import keyfile
from modelsupd.gateway.keyfile import Key
from modelsupd.gateway.keys import LOOK_EVERY_S, Keys, Principal, Refusal


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Headers(dict[str, str]):
    def get(self, name: str, default: str = "") -> str:  # type: ignore[override]  # that of a request, not of a dict
        return super().get(name.lower(), default)


def shown(key: str) -> Headers:
    return Headers(authorization=f"Bearer {key}")


def made(path: Path, name: str = "alice", **limits: object) -> str:
    return keyfile.add(path, Key(name=name, digest="", prefix="", **limits))  # type: ignore[arg-type]  # as a test says


def keys(path: Path, clock: Clock | None = None, *, open_without: bool = True) -> Keys:
    return Keys(path, clock or Clock(), open_without=open_without)


def principal(found: Principal | Refusal) -> Principal:
    assert isinstance(found, Principal), found
    return found


def refusal(found: Principal | Refusal | None) -> Refusal:
    assert isinstance(found, Refusal), found
    return found


# The file


def test_a_key_is_not_kept_and_nobody_else_can_read_what_is(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = made(path)
    assert key.startswith("msk-")
    assert len(key) >= len("msk-") + 43
    assert key not in path.read_text()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (kept,) = keyfile.read(path)
    assert key.startswith(kept.prefix)
    assert len(kept.prefix) < len(key) / 4


def test_a_name_stands_for_one_key_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    made(path)
    with pytest.raises(ModelsupdError, match="there is one of that name"):
        made(path)
    assert keyfile.revoke(path, "alice", "2026-01-01T00:00:00Z").revoked
    made(path)
    assert [key.revoked is None for key in keyfile.read(path)] == [False, True]
    with pytest.raises(ModelsupdError, match="there are: alice"):
        keyfile.revoke(path, "bob", "2026-01-01T00:00:00Z")


@pytest.mark.parametrize("name", ["", " ", "a\nb", "-a", "a" * 65, "ключ"])
def test_a_name_is_a_plain_word(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelsupdError, match="cannot add key"):
        made(tmp_path / "keys.json", name)


def test_keys_that_are_made_at_once_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: made(path, f"k{index}"), range(16)))
    assert {key.name for key in keyfile.read(path)} == {f"k{index}" for index in range(16)}


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"v": 2, "keys": []}', '{"v": 1, "keys": [{"name": 3}]}', "[" * 99999]
)
def test_a_file_that_makes_no_sense_is_said_to(tmp_path: Path, text: str) -> None:
    path = tmp_path / "keys.json"
    path.write_text(text)
    with pytest.raises(ModelsupdError, match="cannot read the keys"):
        keyfile.read(path)


# Who is served


def test_without_keys_everyone_is_served_where_the_gateway_is_open_and_nobody_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    everyone = principal(keys(path).check(Headers()))
    assert (everyone.name, everyone.admin, everyone.may_use("x")) == ("", False, True)
    assert everyone.enter(0.0) is None
    assert refusal(keys(path, open_without=False).check(Headers())).status == 401


@pytest.mark.parametrize(
    "headers",
    [{"authorization": "Bearer {}"}, {"authorization": "bearer   {} "}, {"x-api-key": "{}"}, {"api-key": "{}"}],
)
def test_a_key_is_taken_in_each_place_where_clients_put_it(tmp_path: Path, headers: dict[str, str]) -> None:
    path = tmp_path / "keys.json"
    key = made(path, admin=True)
    found = principal(keys(path).check(Headers({name: value.format(key) for name, value in headers.items()})))
    assert (found.name, found.admin) == ("alice", True)


def test_whoever_shows_no_key_or_another_is_refused_without_a_word_about_the_right_one(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = made(path)
    watched = keys(path)
    for wrong in (Headers(), Headers(authorization=f"Basic {key}"), shown(key[:-1]), shown(key + "x"), shown("\udcff")):
        found = refusal(watched.check(wrong))
        assert found.status == 401
        assert key[:12] not in found.words


def test_a_key_may_be_for_some_models(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    key = made(path, models=("qwen*", "tiny"))
    found = principal(keys(path).check(shown(key)))
    assert [found.may_use(name) for name in ("qwen3:8b", "tiny", "tiny2", "QWEN")] == [True, True, False, False]
    assert found.may_use("other", "qwen-alias")


# Changes


def test_a_revoked_key_counts_no_more_within_a_second_and_the_gateway_does_not_fall_open(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys.json", Clock()
    watched = keys(path, clock)
    assert principal(watched.check(Headers())).name == ""
    key = made(path)
    clock.now += LOOK_EVERY_S
    assert refusal(watched.check(Headers())).code == "missing_api_key"
    assert principal(watched.check(shown(key))).name == "alice"
    keyfile.revoke(path, "alice", "2026-01-01T00:00:00Z")
    clock.now += LOOK_EVERY_S
    assert "revoked" in refusal(watched.check(shown(key))).words
    assert refusal(watched.check(Headers())).status == 401


def test_a_file_that_is_spoilt_changes_nothing_and_one_that_was_never_right_serves_nobody(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys.json", Clock()
    key = made(path)
    whole = path.read_bytes()
    watched = keys(path, clock)
    assert principal(watched.check(shown(key)))
    path.write_text("{")
    clock.now += LOOK_EVERY_S
    assert principal(watched.check(shown(key)))
    assert refusal(watched.check(Headers())).status == 401
    assert refusal(keys(path).check(shown(key))).status == 503
    path.write_bytes(whole)
    clock.now += LOOK_EVERY_S
    assert principal(watched.check(shown(key)))


@pytest.mark.parametrize(("open_without", "served"), [(True, "everyone who reaches the gateway"), (False, "nobody")])
def test_a_file_that_is_removed_is_as_if_it_had_never_been_and_that_is_said(
    tmp_path: Path, open_without: bool, served: str
) -> None:
    path, clock = tmp_path / "keys.json", Clock()
    made(path)
    watched = keys(path, clock, open_without=open_without)
    assert refusal(watched.check(Headers())).status == 401
    path.unlink()
    with structlog.testing.capture_logs() as said:
        for _ in range(3):
            clock.now += LOOK_EVERY_S
            assert isinstance(watched.check(Headers()), Refusal) is not open_without
    assert [(each["log_level"], each["served_without"]) for each in said] == [("warning", served)]


def test_the_file_is_looked_at_once_a_second_and_not_read_unless_it_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, clock = tmp_path / "keys.json", Clock()
    key = made(path)
    reads: list[Path] = []
    whole = keyfile.read

    def read(path: Path) -> tuple[Key, ...]:
        reads.append(path)
        return whole(path)

    monkeypatch.setattr(keyfile, "read", read)
    watched = keys(path, clock)
    for _ in range(50):
        clock.now += LOOK_EVERY_S / 10
        assert principal(watched.check(shown(key)))
    assert len(reads) == 1
    os.utime(path, ns=(1, 1))
    clock.now += LOOK_EVERY_S
    watched.check(shown(key))
    assert len(reads) == 2


# Limits


def test_a_key_has_so_many_requests_in_flight_and_no_more_across_changes_of_the_file(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys.json", Clock()
    key = made(path, max_concurrent=2)
    watched = keys(path, clock)
    first = principal(watched.check(shown(key)))
    assert first.enter(clock.now) is None
    made(path, "bob")
    clock.now += LOOK_EVERY_S
    second = principal(watched.check(shown(key)))
    assert second is not first
    assert second.enter(clock.now) is None
    refused = refusal(second.enter(clock.now))
    assert (refused.status, refused.code) == (429, "concurrency_limit_exceeded")
    assert refused.retry_after_s
    first.leave()
    assert second.enter(clock.now) is None


def test_a_key_begins_so_many_requests_in_any_minute_and_is_told_when_it_may_again(tmp_path: Path) -> None:
    path, clock = tmp_path / "keys.json", Clock()
    key = made(path, requests_per_minute=3)
    found = principal(keys(path, clock).check(shown(key)))
    for _ in range(3):
        assert found.enter(clock.now) is None
        found.leave()
        clock.now += 10
    refused = refusal(found.enter(clock.now))
    assert (refused.status, refused.code, refused.retry_after_s) == (429, "rate_limit_exceeded", 30.0)
    clock.now += 30
    assert found.enter(clock.now) is None
    assert refusal(found.enter(clock.now)).retry_after_s == 10.0


def test_the_file_keeps_what_a_newer_version_may_add(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    made(path)
    content = json.loads(path.read_text())
    content["keys"][0]["colour"] = "green"
    path.write_text(json.dumps(content))
    assert keyfile.read(path)[0].name == "alice"
