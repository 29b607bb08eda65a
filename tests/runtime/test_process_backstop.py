"""Who ends a run when nobody follows up, and when."""

from __future__ import annotations

import asyncio
from pathlib import Path

from running import Site, alive, run
from waiting import auntil


def test_the_shim_waits_as_long_as_it_was_last_told(tmp_path: Path) -> None:
    deaf = tmp_path / "deaf"
    deaf.write_text("#!/bin/sh\ntrap '' TERM\necho up\nwhile :; do read -r _ < /dev/zero; done\n")
    deaf.chmod(0o755)

    async def test(site: Site) -> None:
        engine = await site.processes.spawn(site.launch(str(deaf), backstop_s=30.0))
        await auntil(lambda: "up" in site.log())
        site.processes.terminate("tiny/0", 1, backstop_s=0.2)
        ended = await asyncio.wait_for(site.processes.wait("tiny/0", 1), 10)
        assert ended.note == "nobody followed up on SIGTERM within 0.2 s, so the shim killed the run"
        assert not alive(engine.pid)

    run(test)
