"""One request for an engine, from its turn to its record.

Rules. As long as nothing of an engine's answer has gone to the client, another run may give it; after that nothing is
ever begun again. A stream ends with what its engine said, or with exactly one error event; never in silence. And
whatever became of the client, the request is recorded once, when its last byte is out.
"""

from __future__ import annotations

import time
from typing import Final

from modelsupd.gateway import errors, finals
from modelsupd.gateway.base import Api, EndedBy, Model, Run
from modelsupd.gateway.desk import Desk
from modelsupd.gateway.errors import Trouble
from modelsupd.gateway.exchange import Exchange
from modelsupd.gateway.keys import Principal
from modelsupd.gateway.ports import BY_CLIENT, BY_ENGINE, Answer, Done, Pair, UpstreamFailed
from modelsupd.gateway.record import Entry
from modelsupd.gateway.sse import Scanner
from modelsupd.gateway.traffic import RunTraffic
from modelsupd.gateway.waiting import Queue, Wait
from modelsupd.gateway.wire import Kind

#: So often a request is sent to engines at most, whatever runs there are.
MAX_ATTEMPTS: Final = 6

#: A client that streams and waits gets a comment after so long, and then again and again: proxies cut what is silent.
WARM_AFTER_S: Final = 15.0

_OK: Final = 200
_SERVER_ERROR: Final = 500
_BAD_GATEWAY: Final = 502
_UNAVAILABLE: Final = 503
_GATEWAY_TIMEOUT: Final = 504

STREAM_HEADERS: Final[tuple[Pair, ...]] = ((b"x-accel-buffering", b"no"), (b"cache-control", b"no-cache"))
_EVENT_STREAM: Final[Pair] = (b"content-type", b"text/event-stream; charset=utf-8")


class Errand:
    """What is to be done for a client. `queued`: within the model's limits; `path` takes the place of its own."""

    __slots__ = (
        "api",
        "asked",
        "headers",
        "path",
        "principal",
        "queued",
        "session",
        "silent",
        "stream",
        "warm_after_s",
    )

    def __init__(  # noqa: PLR0913 - what a request comes down to, each named where it is given
        self,
        api: Api,
        asked: str,
        principal: Principal,
        headers: list[Pair],
        *,
        path: str | None = None,
        stream: bool = False,
        silent: bool = False,
        queued: bool = True,
        session: str | None = None,
        warm_after_s: float = WARM_AFTER_S,
    ) -> None:
        """Hold what does not change from one attempt to the next."""
        self.api = api
        self.asked = asked
        self.principal = principal
        self.headers = headers
        self.path = path
        self.stream = stream
        self.silent = silent
        self.queued = queued
        self.session = session
        self.warm_after_s = warm_after_s


class Serving:
    """The life of one request. It waits (in the model's queue), is relayed (in `desk.relays`), or is over."""

    # These stand in the class since most requests never change most of them.
    _attempts = 0
    _run: str = ""
    _traffic: RunTraffic | None = None
    _scanner: Scanner | None = None
    _trouble: Trouble | None = None
    _error = ""
    _status = 0
    _relayed_at = 0.0
    _holds_place = False
    _over = False

    def __init__(self, desk: Desk, exchange: Exchange, errand: Errand, model: Model) -> None:
        """Prepare; `begin` sets it going."""
        self._desk = desk
        self._exchange = exchange
        self._errand = errand
        self._model = model
        self._queue: Queue = desk.queue(model.name)
        self._wait = Wait()
        self._size_bytes = len(exchange.body)
        self._tried: dict[str, int] = {}

    def begin(self) -> None:
        """Send it to an engine, let it wait, or say why neither."""
        if self._errand.queued and len(self._queue):
            self._line_up()
            self._queue.pump()
        elif not self._start():
            self._line_up()

    # Waiting

    def wake(self) -> bool:
        """Try again, and return whether it waits no more."""
        if self._over:
            return True
        model = self._desk.model(self._model.name)
        if model is None:
            self._fail(errors.not_found(self._errand.asked, ()))
            return True
        self._model = model
        return self._start() or not self._may_wait()

    def overdue(self, now: float) -> None:
        """Look at the time: of a request that waits, or of a stream."""
        if self._over:
            return
        if self._wait.since is None:
            self._look_at_stream(now)
        elif self._wait.late(now):
            self._fail(self._trouble or self._wait.too_late(self._model, self._queue.position(self), now))
        elif self._errand.stream and self._wait.cold(now, self._errand.warm_after_s):
            self._exchange.start_stream(_OK, (_EVENT_STREAM, *STREAM_HEADERS, *self._errand.headers))
            self._exchange.send(finals.comment(self._wait.words(self._model, self._queue.position(self))))

    def _line_up(self) -> None:
        """Join those who wait, or say why that is of no use."""
        model = self._model
        if not self._errand.queued:
            self._fail(self._trouble or errors.not_ready(model.name, model.reason, model.retry_after_s))
        elif self._may_wait():
            now = self._desk.clock()
            self._wait.begin(now)
            self._exchange.on_client_gone(self._client_gone)
            self._queue.join(self, now, first=bool(self._tried))

    def _may_wait(self) -> bool:
        refusal = self._wait.refusal(self._model, self._queue, self._desk.clock(), again=bool(self._tried))
        if refusal is not None:
            self._fail(self._trouble or refusal)
        return refusal is None

    def _client_gone(self) -> None:
        """Learn that the client left while it waited; of a relay `_done` tells."""
        if self._wait.since is not None:
            self._finish(EndedBy.CLIENT, "client_gone")

    # Being served

    def _start(self) -> bool:
        """Send it to a run, if there is one and it is its turn."""
        model = self._model
        if self._errand.queued and not self._queue.has_room(model):
            return False
        now = self._desk.clock()
        run = self._desk.pick(model, self._tried, self._errand.session, now)
        if run is None:
            return False
        if self._wait.since is not None:
            self._wait.end(now)
            self._queue.leave(self)
        self._relay(run, now)
        return True

    def _relay(self, run: Run, now: float) -> None:
        desk, errand, model = self._desk, self._errand, self._model
        self._attempts += 1
        self._run = key = run.key
        self._error = ""
        self._relayed_at = now
        if errand.queued:
            self._holds_place = True
            self._queue.active += 1
        self._traffic = traffic = desk.ledger.of(key) if errand.queued else desk.ledger.aside(key)
        traffic.begin(now)
        self._scanner = scanner = Scanner(errand.api, traffic, desk.clock, silent=errand.silent, mend=self._mend)
        desk.relays.add(self)
        headers = [*errand.headers, (b"x-modelsupd-run", key.encode("latin-1", "replace"))]
        if errand.stream:
            headers += STREAM_HEADERS
        self._exchange.relay(
            run,
            path=errand.path,
            headers_added=headers,
            observer=scanner,
            on_failed=self._failed,
            on_done=self._done,
            first_byte_timeout_s=model.first_byte_timeout_s,
            # A stream's silence is judged by its events, in `_look_at_stream`: comments are bytes, too.
            stall_s=max(model.stream_stall_s, model.first_byte_timeout_s),
        )

    def _look_at_stream(self, now: float) -> None:
        """End a stream whose events have stopped."""
        scanner, model = self._scanner, self._model
        if scanner is None or not scanner.streams:
            return
        if self._exchange.client.paused:
            self._relayed_at = now  # it is the client who takes none
            return
        last_at = max(self._relayed_at, scanner.event_at or 0.0)
        limit_s = model.first_byte_timeout_s if scanner.event_at is None else model.stream_stall_s
        if now - last_at >= limit_s:
            words = f"no event of a stream within {limit_s:g} s, after {scanner.events}"
            self._blame(Kind.STALLED, words)
            self._die(_stopped(_GATEWAY_TIMEOUT, Kind.STALLED, words), EndedBy.GATEWAY)

    def _mend(self) -> bytes:
        """Return the end of a stream that its engine ended without one."""
        words = "it ended with neither a finish reason nor [DONE]"
        return self._final(_stopped(_BAD_GATEWAY, Kind.CLOSED, words)) if self._exchange.can_finish else b""

    def _failed(self, failure: UpstreamFailed) -> None:
        """Give it to another run while that is possible, and end it honestly where it is not."""
        begun = self._scanner is not None and self._scanner.status != 0
        if failure.kind == "status":
            self._refused_in_stream(failure.answer)
            return
        if failure.kind == "unable":
            self._leave_run()
            self._fail(Trouble(_UNAVAILABLE, "gateway_overloaded", "the gateway is short of connections", 1.0))
            return
        kind = Kind.STALLED if failure.kind == "timeout" and begun else Kind(failure.kind)
        # Of an answer no more than the status: the rest may repeat what was asked.
        words = f"answered {failure.answer.status}" if failure.answer is not None else failure.words
        self._blame(kind, words)
        late = failure.kind == "timeout"
        if begun:
            trouble = _stopped(_GATEWAY_TIMEOUT if late else _BAD_GATEWAY, kind, words)
            self._die(trouble, EndedBy.GATEWAY if late else EndedBy.ENGINE)
            return
        status = _GATEWAY_TIMEOUT if late else _UNAVAILABLE
        self._trouble = Trouble(status, "engine_failed", f"the engine did not answer: {words}", 1.0)
        self._leave_run()
        self._again()

    def _again(self) -> None:
        """Try another run, or wait for one."""
        self._tried[self._run] = self._tried.get(self._run, 0) + 1
        model = self._desk.model(self._model.name)
        if model is None or self._attempts >= MAX_ATTEMPTS:
            self._fail(self._trouble or errors.not_found(self._errand.asked, ()))
            return
        self._model = model
        if not self._start():
            self._line_up()
        self._queue.pump()

    def _refused_in_stream(self, answer: Answer | None) -> None:
        """Pass on what the engine said against the request, to a client that has its status already."""
        status = answer.status if answer is not None else _BAD_GATEWAY
        said = errors.message_in(answer.body) if answer is not None else ""
        if status >= _SERVER_ERROR:
            self._blame(Kind.BAD_ANSWER, f"answered {status}")
        self._die(Trouble(status, f"status_{status}", said or f"the engine answered {status}"), EndedBy.ENGINE)

    def _blame(self, kind: Kind, words: str) -> None:
        """Report that the run failed this client."""
        desk = self._desk
        desk.suspects.failed(self._run, desk.clock())
        desk.ledger.of(self._run).failed()
        desk.reports.evidence(self._run, kind, words)
        self._error = str(kind)

    def _done(self, done: Done) -> None:
        """Take stock of an answer that has ended, by whoever's doing."""
        if self._over:
            return
        self._status = done.status
        if done.ended_by is BY_CLIENT:
            self._error = "client_gone"
        elif done.ended_by is BY_ENGINE and self._scanner is not None:
            fault = self._scanner.fault
            if fault is None or fault.kind is None:
                self._desk.suspects.proved(self._run)
            else:
                self._blame(fault.kind, fault.words)
            if fault is not None:
                self._error = fault.code
        self._finish(done.ended_by, self._error)

    # Ends

    def _die(self, trouble: Trouble, ended_by: EndedBy) -> None:
        """End an answer in the middle: by an event where it is a stream, else so that the client sees it cut."""
        exchange, scanner = self._exchange, self._scanner
        self._status = scanner.status if scanner is not None and scanner.status else _OK
        self._error = self._error or trouble.code
        final = b"" if scanner is not None and scanner.told_end else self._final(trouble)
        entry = self._close()
        if scanner is None or scanner.status == 0 or scanner.streams:
            exchange.finish_with(final)
        else:
            exchange.abort()
        self._record(entry, ended_by)

    def _final(self, trouble: Trouble) -> bytes:
        scanner = self._scanner
        return finals.final(
            self._errand.api,
            trouble,
            self._exchange.request_id,
            sequence=scanner.events if scanner is not None else 0,
            mid_event=scanner is not None and scanner.mid_event,
        )

    def _fail(self, trouble: Trouble) -> None:
        """Say that there will be no answer; by an event where the client has had comments already."""
        exchange = self._exchange
        self._error = trouble.code
        if exchange.began:
            self._die(trouble, EndedBy.GATEWAY)
            return
        self._status = trouble.status
        entry = self._close()
        exchange.respond(*errors.answer(self._errand.api, trouble, exchange.request_id, self._errand.headers))
        self._record(entry, EndedBy.GATEWAY)

    def _finish(self, ended_by: EndedBy, error: str) -> None:
        if not self._over:
            self._error = error
            self._record(self._close(), ended_by)

    def _leave_run(self) -> None:
        """Give back the run, and the place with it."""
        self._desk.relays.discard(self)
        self._scanner = None
        traffic, self._traffic = self._traffic, None
        if traffic is not None:
            traffic.end()
        if self._holds_place:
            self._holds_place = False
            self._queue.active -= 1

    def _close(self) -> Entry:
        """Be over: what is called back from now on changes nothing. Return the record, which its end completes."""
        self._over = True
        self._wait.end(self._desk.clock())
        self._queue.leave(self)
        entry = self._entry()
        self._leave_run()
        self._errand.principal.leave()
        return entry

    def _record(self, entry: Entry, ended_by: EndedBy) -> None:
        entry.ended_by = ended_by
        entry.bytes_out = self._exchange.sent_bytes
        self._desk.reports.record(entry)
        self._queue.pump()

    def _entry(self) -> Entry:
        exchange, errand, scanner = self._exchange, self._errand, self._scanner
        duration_s = self._desk.clock() - exchange.started_at
        entry = Entry(
            id=exchange.request_id,
            at=time.time() - duration_s,
            api=errand.api,
            method=exchange.method,
            key=errand.principal.name,
            asked=errand.asked,
            model=self._model.name,
            run=self._run,
            status=self._status,
            stream=errand.stream,
            queue_s=self._wait.total_s,
            duration_s=duration_s,
            bytes_in=self._size_bytes,
            retries=max(0, self._attempts - 1),
            error=self._error,
        )
        if scanner is not None and scanner.first_at is not None:
            usage = scanner.usage
            entry.ttft_s = (scanner.content_at or scanner.first_at) - exchange.started_at
            entry.tokens_in, entry.tokens_out = usage.tokens_in, usage.tokens_out
            entry.events = scanner.events
            entry.finish_reason = scanner.finish_reason
        return entry


def _stopped(status: int, kind: Kind, words: str) -> Trouble:
    return Trouble(status, str(kind), f"the engine stopped in the middle of its answer: {words}")
