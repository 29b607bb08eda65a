"""An engine is not ended over what it has computed and not yet sent."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from modelsupd.runtime import vitals


def test_what_is_on_its_way_out_is_waited_for_and_not_for_ever(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place / "engine.sock"

    async def main() -> None:
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind(str(path))
            listener.listen()
            await vitals.flushed(f"unix:{path}")
            client.connect(str(path))
            served, _ = listener.accept()
            waiting = asyncio.ensure_future(vitals.flushed(f"unix:{path}"))
            await asyncio.wait({waiting}, timeout=0.1)
            assert not waiting.done(), "somebody still hears from it"
            served.close()
            client.close()
            await asyncio.wait_for(waiting, 10)
        monkeypatch.setattr(vitals, "FLUSHED_WITHIN_S", 0.05)
        other = place / "kept.sock"
        with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:
            listener.bind(str(other))
            listener.listen()
            client.connect(str(other))
            with listener.accept()[0]:
                await asyncio.wait_for(vitals.flushed(f"unix:{other}"), 10)

    monkeypatch.setattr(vitals, "FLUSHED_WITHIN_S", 60.0)
    asyncio.run(main())
