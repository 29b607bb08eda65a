"""What a server asks to wait is waited, where it is not too long for whoever asks."""

from __future__ import annotations

import email.utils
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import hub_faults as faults
from fetching import KEY, MODEL, REPO, Target, noise, quick
from hub_world import alone  # noqa: F401 - an automatic fixture
from mock_hub import MockHub
from modelsupd.weights.base import HubSource
from modelsupd.weights.hub import listing
from modelsupd.weights.refusals import retry_after_s


@pytest.mark.parametrize("fails", ["the file", "the listing"])
def test_it_is_waited_for_as_long_as_asked_and_then_gone_on(place: Path, fails: str) -> None:
    with MockHub() as hub:
        hub.add(REPO, {MODEL: noise(1000)}, lfs={MODEL})
        hub.faults[KEY if fails == "the file" else "*"] = faults.Status(status=429, retry_after="1", times=1)
        began_at = time.monotonic()
        if fails == "the file":
            assert Target.of(hub, place, backoff_max_s=2).fetch().received_bytes == 1000
        else:
            assert len(listing(HubSource(REPO), quick(place, backoff_max_s=2, endpoint=hub.url)).files) == 1
        assert 1 <= time.monotonic() - began_at < 10
        assert len(hub.requests) <= 3


def test_it_may_be_a_date_and_what_is_no_time_asks_for_nothing() -> None:
    soon = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 80 < (retry_after_s(soon) or 0) <= 90
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert [retry_after_s(value) for value in (" 7 ", "0")] == [7, 0]
    assert [retry_after_s(value) for value in ("", "soon", "-1", "1.5", "9" * 10, "\u0663")] == [None] * 6
