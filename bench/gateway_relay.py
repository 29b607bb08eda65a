"""The gateway's relay alone: one worker whose service relays everything to one engine. `… PORT ENDPOINT`."""

from __future__ import annotations

import asyncio
import gc
import resource
import sys

import uvloop

from counting_observer import Counter
from modelsupd.gateway.base import Limits, Run
from modelsupd.gateway.exchange import Exchange, UpstreamFailed
from modelsupd.gateway.front import Front
from modelsupd.gateway.listener import Listener, listening


async def main(port: int, endpoint: str) -> None:
    """Serve until killed."""
    run = Run("m/0", 1, endpoint)
    added = ((b"x-modelsupd-run", run.key.encode()),)

    def handle(exchange: Exchange) -> None:
        def failed(failure: UpstreamFailed) -> None:
            sys.stderr.write(f"{failure}\n")
            exchange.abort()

        exchange.relay(
            run,
            headers_added=added,
            observer=Counter(),
            on_failed=failed,
            on_done=lambda _: None,
            first_byte_timeout_s=600,
            stall_s=120,
        )

    front = Front(Limits(), handle)
    front.start()
    await Listener(front).start([listening("127.0.0.1", port)])
    gc.collect()
    gc.freeze()
    await asyncio.Event().wait()


if __name__ == "__main__":
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
