"""Keeps one gateway in front of all models: started first, stopped last, replaced without a connection lost.

A gateway is run as engines are, under one of two reserved names that take turns. A replacement comes up under the
other name; when it is ready it takes over the listening sockets, which the daemon holds too and nobody ever closes, and
only then is the old one drained: its streams go on until they end.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import structlog

from modelsupd import __version__
from modelsupd.config import Config
from modelsupd.core.demand import Usage
from modelsupd.core.events import Delivered, Event, FailedClient
from modelsupd.core.fleet import Declared
from modelsupd.core.phases import Live, Ready, Replica, phase_name
from modelsupd.core.spec import Engine, HealthLimits, ModelSpec, StopLimits, launch_digest
from modelsupd.engines.base import Request
from modelsupd.gateway import plain, settings, wire
from modelsupd.gateway.base import Model
from modelsupd.runtime.gateway_link import GatewayLinks, Peer, address, bound
from modelsupd.runtime.http import ProbeError, fetch

log = structlog.get_logger("gateway")

#: The reserved names; no model can have one, for theirs begin with a letter or digit.
NAMES = ("@gateway-1", "@gateway-2")

#: A gateway answers in a millisecond; one that does not for this long is replaced.
_HEALTH = HealthLimits(probe_interval_s=2.0, probe_timeout_s=5.0, hang_after_s=15.0, start_stall_s=30.0)

#: How often an address that is taken by somebody else is tried again, in seconds.
BIND_EVERY_S = 2.0

#: A scrape waits no longer for the gateway's part, in seconds.
METRICS_TIMEOUT_S = 1.0
_METRICS = Request(method="GET", path="/metrics")

#: How often it is looked whether a gateway that is waited for is there at all, in seconds.
SEEN_EVERY_S = 0.05

#: How long a gateway that was found running is given to come with its sockets, before they are bound anew, in seconds.
REUNION_S = 3.0


def is_gateway(name: str) -> bool:
    """Tell whether a model or replica is the gateway's."""
    return name.startswith("@gateway-")


class Gatekeeper:
    """Decides which gateways are declared, and which of them takes connections.

    `replicas` returns what is published; `apply` brings the fleet to what is declared, `put` hands a replica an event.
    `used` is called when what `usage` returns may have changed in a way that matters: what is waited for, whether a run
    is in use, or which gateways there are.
    """

    def __init__(
        self,
        config: Config,
        *,
        replicas: Callable[[], Mapping[str, Replica]],
        apply: Callable[[], object],
        put: Callable[[str, Event], None],
        used: Callable[[], object] = lambda: None,
    ) -> None:
        """Prepare; nothing is touched before `configure`."""
        self._config = config
        self._replicas, self._apply, self._put = replicas, apply, put
        self._desired: Declared | None = None
        self._bound_for: tuple[tuple[str, int], ...] = ()
        self._retry: asyncio.TimerHandle | None = None
        self._applying = False
        self.trouble = ""
        self._links = GatewayLinks(
            config.runtime_dir / wire.SOCKET_NAME,
            on_hello=self._hello,
            on_delivered=self._delivered,
            on_evidence=self._evidence,
            on_used=used,
        )

    # What is declared

    def configure(self, config: Config) -> None:
        """Take a configuration over; what it asks for is then in `declared`. Raises OSError."""
        self._config = config
        spec = config.declaration.gateway
        if spec is None or not config.gateway_listen:
            self._desired = None
            return
        link = config.runtime_dir / wire.SOCKET_NAME
        told = settings.of_spec(spec, run="gateway", daemon_socket=link, state_dir=config.state_dir)
        # Another version, or other addresses, are another gateway too.
        key = json.dumps([plain.write(told), config.gateway_listen, __version__], sort_keys=True)
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        path = config.runtime_dir / f"gateway-{digest}.json"
        if not path.exists():
            settings.write(path, told)
        for older in config.runtime_dir.glob("gateway-*.json"):
            # One more is kept: the gateway that is being replaced may have to be started again until then.
            if older not in (path, self._settings_path()):
                older.unlink(missing_ok=True)
        gateway = ModelSpec(
            engine=Engine.GATEWAY,
            args={"settings": str(path)},
            health=_HEALTH,
            stop=StopLimits(drain_timeout_s=spec.drain_timeout_s),
        )
        self._desired = Declared(gateway, launch_digest(gateway))

    def _settings_path(self) -> Path | None:
        return Path(str(self._desired.spec.args["settings"])) if self._desired else None

    def recovering(self, states: Mapping[str, Mapping[str, Any]]) -> dict[str, Declared]:
        """Return the gateways that the journal knows, as they were started, for their adoption."""
        spec = self._desired.spec if self._desired else ModelSpec(engine=Engine.GATEWAY, health=_HEALTH)
        known = {state["model"]: state["digest"] for name, state in states.items() if is_gateway(name)}
        return {model: Declared(spec, digest) for model, digest in known.items()}

    def declared(self) -> dict[str, Declared]:
        """Return the gateways that should be: the desired one and, until it has taken over, the one before it."""
        if self._desired is None:
            return {}
        present = [replica for replica in self._replicas().values() if is_gateway(replica.name) and not replica.removed]
        fresh = [replica for replica in present if replica.digest == self._desired.digest]
        older = [replica for replica in present if replica.digest != self._desired.digest]
        if fresh:
            result = {fresh[0].model: self._desired}
            if older and not self._has_taken_over(fresh[0]):
                result[older[0].model] = Declared(older[0].spec, older[0].digest)
            return result
        serving = next((replica for replica in older if isinstance(replica.phase, Live)), None)
        if serving is None:
            return {NAMES[0]: self._desired}
        other = next(name for name in NAMES if name != serving.model)
        return {serving.model: Declared(serving.spec, serving.digest), other: self._desired}

    def _has_taken_over(self, replica: Replica) -> bool:
        peer = self._peer_of(replica)
        return isinstance(replica.phase, Ready) and peer is not None and peer.accepts is True

    # Listening

    def open(self) -> None:
        """Listen for gateways, and for clients unless one that runs already does that. Raises OSError."""
        self._links.open()
        running = any(is_gateway(name) and replica.process for name, replica in self._replicas().items())
        if running:
            self._later(REUNION_S)
        else:
            self._bind()

    def close(self) -> None:
        """Leave the gateways alone."""
        if self._retry is not None:
            self._retry.cancel()
        self._links.close()

    def _later(self, delay_s: float) -> None:
        if self._retry is not None:
            self._retry.cancel()
        self._retry = asyncio.get_running_loop().call_later(delay_s, self._bind)

    def _bind(self) -> None:
        """Have a listening socket at each declared address, those that are held already and new ones."""
        wanted = self._config.gateway_listen
        if self._desired is None or (self._bound_for == wanted and self._links.sockets):
            return
        held = {address(each): each for each in self._links.sockets}
        try:
            made = bound([each for each in wanted if each not in held])
        except OSError as error:
            if self.trouble == "":
                log.warning("the gateway cannot listen", at=error.filename, why=error.strerror)
            self.trouble = f"cannot listen at {error.filename}: {(error.strerror or '').lower()}"
            self._later(BIND_EVERY_S)
            return
        self.trouble, self._bound_for = "", wanted
        for at, each in held.items():
            if at not in wanted and wanted and all(port for _host, port in wanted):
                self._links.sockets.remove(each)
                each.close()
        self._links.sockets.extend(made)
        for at in map(address, made):
            log.info("gateway listens", at=f"http://{at[0]}:{at[1]}")
        for peer in self._links.peers:
            if peer.hello is not None:
                self._links.welcome(peer, accept=bool(peer.accepts), with_sockets=True)
        self.look()

    def rebind(self) -> None:
        """Listen at what is declared by now; where that is nothing, let nobody wait for a gateway that never comes."""
        if self._desired is None:
            self._links.drop_sockets()
            self._bound_for = ()
        self._bind()

    def addresses(self) -> tuple[tuple[str, int], ...]:
        """Return host and port of every address that is listened on."""
        return tuple(address(each) for each in self._links.sockets)

    # Who takes connections

    def publish(self, models: tuple[Model, ...]) -> None:
        """Tell gateways what there is."""
        processes = ((name, replica.process) for name, replica in self._replicas().items())
        self._links.forget_all_but({f"{name}#{process.run}" for name, process in processes if process is not None})
        self._links.publish(models)

    async def seen(self, within_s: float) -> bool:
        """Wait until every gateway works by what was published last; tell whether all do."""
        seq, until = self._links.seq, asyncio.get_running_loop().time() + within_s
        while not self._all_have_seen(seq):
            left_s = until - asyncio.get_running_loop().time()
            if left_s <= 0:
                return False
            await self._links.news(min(left_s, SEEN_EVERY_S))
        return True

    def _all_have_seen(self, seq: int) -> bool:
        return not self._away() and all(self._links.has_seen(peer, seq) for peer in self._links.peers)

    def _away(self) -> bool:
        """Tell whether a gateway that serves has not told of itself, or has lost its link: nothing is known of it."""
        ready = [each for each in self._replicas().values() if is_gateway(each.name) and isinstance(each.phase, Ready)]
        return any((peer := self._peer_of(replica)) is None or peer.hello is None for replica in ready)

    def look(self) -> None:
        """Decide anew who takes connections, and whether what is declared changes by it."""
        peers = {peer: replica for peer in self._links.peers if (replica := self._replica_of(peer)) is not None}
        best = self._best(peers)
        if best is not None:
            self._links.accept(best)
            for peer in peers:
                if peer is not best:
                    self._links.drain(peer)
        if self._desired is not None and not self._applying and self._differs():
            self._applying = True
            asyncio.get_running_loop().call_soon(self._apply_now)

    def _apply_now(self) -> None:
        self._applying = False
        self._apply()

    def _differs(self) -> bool:
        present = {
            replica.model: replica.digest
            for replica in self._replicas().values()
            if is_gateway(replica.name) and not replica.removed
        }
        return present != {name: entry.digest for name, entry in self.declared().items()}

    def _best(self, peers: Mapping[Peer, Replica]) -> Peer | None:
        def rank(peer: Peer) -> tuple[bool, bool, bool]:
            replica = peers[peer]
            ready = isinstance(replica.phase, Ready)
            desired = self._desired is not None and replica.digest == self._desired.digest
            return ready, ready and desired, bool(peer.accepts)

        known = [peer for peer in peers if peer.hello is not None and isinstance(peers[peer].phase, Live)]
        best = max(known, key=rank, default=None)
        # One that was never ready takes no connection away from one that serves, but all if nobody does.
        if best is not None and not rank(best)[0] and any(peer.accepts for peer in known):
            return next(peer for peer in known if peer.accepts)
        return best

    def _replica_of(self, peer: Peer) -> Replica | None:
        for replica in self._replicas().values():
            if is_gateway(replica.name) and replica.process is not None and replica.process.pid == peer.pid:
                return replica
        return None

    def _peer_of(self, replica: Replica) -> Peer | None:
        process = replica.process
        return next((peer for peer in self._links.peers if process is not None and peer.pid == process.pid), None)

    def _hello(self, peer: Peer) -> None:
        assert peer.hello is not None  # noqa: S101 - it is what was heard
        if peer.hello.sockets and not self._bound_for:
            self._bound_for = self._config.gateway_listen if self._holds_wanted() else ()
        brought = bool(peer.hello.sockets)
        alone = not any(other.accepts for other in self._links.peers if other is not peer)
        self._links.welcome(peer, accept=alone and not peer.hello.draining, with_sockets=not brought)
        self._bind()
        self.look()

    def _holds_wanted(self) -> bool:
        held = {address(each) for each in self._links.sockets}
        return all(port == 0 or (host, port) in held for host, port in self._config.gateway_listen)

    # What gateways saw

    def usage(self) -> Usage:
        """Return which runs are in use, and which models are waited for; not known where a gateway has not told."""
        usage = self._links.usage()
        return dataclasses.replace(usage, known=usage.known and not self._away())

    def _delivered(self, run: str) -> None:
        if found := _run_of(run):
            self._put(found[0], Delivered(found[1]))

    def _evidence(self, seen: wire.Evidence) -> None:
        if found := _run_of(seen.run):
            log.warning("failed a client", replica=found[0], run=found[1], kind=seen.kind, why=seen.words)
            self._put(found[0], FailedClient(found[1], f"{seen.kind}: {seen.words}"))

    async def metrics(self) -> bytes:
        """Return what the gateway that takes connections tells Prometheus; nothing where none answers in time."""
        serving = next((self._replica_of(peer) for peer in self._links.peers if peer.accepts), None)
        if serving is None or serving.process is None:
            return b""
        try:
            status, text = await fetch(serving.process.endpoint, _METRICS, METRICS_TIMEOUT_S)
        except ProbeError as error:
            log.warning("the gateway does not tell its metrics", why=str(error))
            return b""
        return text if status == HTTPStatus.OK else b""

    def status(self) -> dict[str, Any] | None:
        """Return what `status` tells of the gateway, None where none is configured."""
        if self._desired is None:
            return None
        rows = [replica for replica in self._replicas().values() if is_gateway(replica.name)]
        return {
            "listen": [f"{host}:{port}" for host, port in self.addresses()],
            "reason": self.trouble,
            "runs": [
                {
                    "name": replica.name,
                    "phase": phase_name(replica.phase),
                    "run": replica.last_run,
                    "pid": replica.process.pid if replica.process else None,
                    "accepts": bool((peer := self._peer_of(replica)) and peer.accepts),
                    "reason": replica.reason,
                }
                for replica in rows
            ],
        }


def _run_of(key: str) -> tuple[str, int] | None:
    """Return replica and run number of a run's key, `qwen/0#7`."""
    replica, _, run = key.rpartition("#")
    return (replica, int(run)) if replica and run.isdecimal() else None
