"""What becomes of a request: who asks, for what, and who serves it. It answers itself, or sets a `Serving` going.

`Service.handle` is given every request that comes whole, on the loop, and returns at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from modelsupd.core.routing import AutoRule, Offer, choose_model
from modelsupd.gateway import api, body, errors
from modelsupd.gateway.api import Cors, NoTarget, Place, Target
from modelsupd.gateway.base import Api, Availability, EndedBy, Model, Table
from modelsupd.gateway.body import Asked, BodyError
from modelsupd.gateway.desk import TICK_S, Desk, Reports
from modelsupd.gateway.errors import Trouble
from modelsupd.gateway.exchange import Exchange
from modelsupd.gateway.keys import Principal, Refusal
from modelsupd.gateway.listing import described, listed
from modelsupd.gateway.parsing import Headers
from modelsupd.gateway.ports import Pair
from modelsupd.gateway.record import Entry
from modelsupd.gateway.serving import WARM_AFTER_S, Errand, Serving
from modelsupd.gateway.traffic import Ledger
from modelsupd.gateway.wire import Wanted

AUTO: Final = "auto"

#: By which header a client says that its requests belong together, so that one replica gets them and its cache helps.
SESSION_HEADERS: Final[tuple[bytes, ...]] = (b"x-session-id", b"x-session-affinity")

_MAX_SESSION_BYTES: Final = 256

#: Spellings without `/v1` that llama-server has and others have not.
_SPELLINGS: Final = {
    "/chat/completions": "/v1/chat/completions",
    "/completions": "/v1/completions",
    "/embeddings": "/v1/embeddings",
}
_EMBEDDINGS: Final = frozenset({"/v1/embeddings", "/embeddings", "/embedding"})
_COUNT_TOKENS: Final = "/v1/messages/count_tokens"
_FORM: Final = b"multipart/form-data"
_JSON: Final[Pair] = (b"content-type", b"application/json")
_NO_TABLE: Final = Trouble(503, "starting", "the gateway has not heard from its daemon yet", 1.0)
#: As a name of the module it is found faster than in its class.
_ENGINE: Final = Place.ENGINE
_OK: Final = 200
_MOVED: Final = 308
_WAITED_FOR: Final = (Availability.LOADING, Availability.ON_DEMAND)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ways:
    """How a service is set up. `session_headers` are in lower case; `tick_s`: how often deadlines are looked at."""

    cors: Cors = field(default_factory=Cors)
    auto: tuple[AutoRule, ...] = ()
    warm_after_s: float = WARM_AFTER_S
    session_headers: tuple[bytes, ...] = SESSION_HEADERS
    tick_s: float = TICK_S


class Service:
    """Decides about requests. Made on the loop, whose clock it sets; give it a table, and `close` it."""

    def __init__(
        self,
        check: Callable[[Headers], Principal | Refusal],
        *,
        ledger: Ledger | None = None,
        reports: Reports | None = None,
        ways: Ways | None = None,
    ) -> None:
        """Serve whom `check` lets in; count in `ledger`, and tell `reports` what happened."""
        self.ways = ways or Ways()
        self.desk = Desk(ledger or Ledger(), reports or Reports(), tick_s=self.ways.tick_s)
        self._check = check
        self.desk.start()

    def close(self) -> None:
        """Stop the clock that ends waits and silent streams."""
        self.desk.close()

    def update(self, table: Table) -> None:
        """Work from this table from now on; who waits for a model that changed is looked at again."""
        self.desk.set_table(table)

    def queued(self) -> Mapping[str, int]:
        """Return how many requests wait, by model."""
        return self.desk.queued()

    def wanted(self) -> tuple[Wanted, ...]:
        """Return every model that requests wait for."""
        return self.desk.wanted()

    def handle(self, exchange: Exchange) -> None:
        """Answer a request, now or later."""
        target = api.find(exchange.method, exchange.path)
        headers: list[Pair] = [(b"x-request-id", exchange.request_id.encode())]
        origin = ""
        if exchange.headers.first.get(b"origin") is not None:
            origin = exchange.headers.get("origin")
            headers += self.ways.cors.headers(origin)
        if isinstance(target, NoTarget):
            code = "not_found" if target.status != 405 else "method_not_allowed"  # noqa: PLR2004 - Method Not Allowed
            if target.allow:
                headers.append((b"allow", target.allow.encode()))
            self._refuse(exchange, headers, Trouble(target.status, code, target.words))
        elif target.place is _ENGINE and not origin:
            self._let_in(exchange, target, headers)
        elif target.place is Place.PREFLIGHT:
            self._preflight(exchange, headers, origin)
        elif target.place is Place.HEALTH:
            self._tell(exchange, headers, {"status": "ok"})
        elif target.place is Place.READY:
            self._tell_ready(exchange, headers)
        elif origin and not self._origin_ok(exchange, origin):
            words = "pages of this origin may not use the gateway; [gateway] cors_origins names those that may"
            self._refuse(exchange, headers, Trouble(403, "origin_not_allowed", words))
        else:
            self._let_in(exchange, target, headers)

    def _origin_ok(self, exchange: Exchange, origin: str) -> bool:
        # Reading an answer is the browser's to forbid, but the engine's work would be done by then.
        return self.ways.cors.allows(origin) or api.same_origin(origin, exchange.headers.get("host"))

    def _let_in(self, exchange: Exchange, target: Target, headers: list[Pair]) -> None:
        """Go on with whoever may."""
        principal = self._check(exchange.headers)
        if isinstance(principal, Refusal):
            self._refuse_key(exchange, headers, principal, None)
        elif self.desk.table is None:
            self._refuse(exchange, headers, _NO_TABLE, principal)
        elif target.place is _ENGINE:
            self._for_engine(exchange, target, headers, principal)
        elif target.place is Place.MODELS:
            self._tell_models(exchange, headers, self.desk.table, principal)
        elif target.place is Place.MODEL:
            self._tell_model(exchange, headers, target.rest, principal)
        else:
            self._upstream(exchange, headers, target.rest, principal)

    # Requests for engines

    def _for_engine(self, exchange: Exchange, target: Target, headers: list[Pair], principal: Principal) -> None:
        kind = exchange.headers.first.get(b"content-type") or b""
        form = exchange.headers.get("content-type") if kind[: len(_FORM)].lower() == _FORM else ""
        try:
            asked = self._asked(exchange, form)
            found = self._find(exchange, asked, target, principal)
            if isinstance(found, Trouble):
                self._refuse(exchange, headers, found, principal, asked.model or "")
                return
            if found.name != asked.model and exchange.body:
                self._rename(exchange, found.name, form)
        except BodyError as error:
            self._refuse(exchange, headers, Trouble(400, "invalid_body", str(error)), principal)
            return
        refusal = principal.enter(self.desk.clock())
        if refusal is not None:
            self._refuse_key(exchange, headers, refusal, principal, asked.model or "")
            return
        errand = Errand(
            target.api,
            asked.model or "",
            principal,
            headers,
            path=_path(exchange),
            stream=asked.stream,
            silent=asked.silent or exchange.path == _COUNT_TOKENS,
            session=_session(exchange.headers, self.ways.session_headers),
            warm_after_s=self.ways.warm_after_s,
        )
        Serving(self.desk, exchange, errand, found).begin()

    def _asked(self, exchange: Exchange, form_type: str) -> Asked:
        if form_type:
            return body.read_form(exchange.body, form_type)
        if exchange.body:
            return body.read_json(exchange.body)
        return Asked(body.model_name(api.model_in_query(exchange.query)))

    def _rename(self, exchange: Exchange, name: str, form_type: str) -> None:
        """Call the model by its own name, since the engine knows no other."""
        if form_type:
            exchange.body = body.renamed_form(exchange.body, form_type, name)
        else:
            exchange.body = body.renamed_json(exchange.body, name)

    def _find(self, exchange: Exchange, asked: Asked, target: Target, principal: Principal) -> Model | Trouble:
        """Return the model that is meant, or why there is none for whoever asks."""
        name = asked.model
        table = self.desk.table
        if table is None:
            return _NO_TABLE
        if not name:
            words = "no model is named: 'model' is missing" if exchange.body else "no model is named: add ?model=NAME"
            return Trouble(400, "model_missing", f"{words}; {errors.known(self._names(table, principal))}")
        found = table.models.get(name) or table.find(name)
        if found is None and name == AUTO:
            return self._choose(exchange, table, target, principal)
        if found is None:
            return errors.not_found(name, self._names(table, principal))
        if not principal.may_use(found.name, *found.aliases):
            return Trouble(403, "model_not_allowed", f"key '{principal.name}' may not use model '{name}'")
        return found

    def _choose(self, exchange: Exchange, table: Table, target: Target, principal: Principal) -> Model | Trouble:
        """Return what `auto` means for this request."""
        embedding = target.api is Api.OTHER and exchange.path in _EMBEDDINGS
        need = body.needs(exchange.body, embedding=embedding)
        offers = [
            Offer(
                name=model.name,
                capabilities=model.capabilities,
                context_length=model.context_length,
                ready=model.availability is Availability.READY,
                waits=model.availability in _WAITED_FOR,
            )
            for model in self._allowed(table, principal)
        ]
        chosen = choose_model(need, offers, self.ways.auto)
        if chosen.name is None:
            return Trouble(503, "no_model_for_auto", f"cannot choose a model: {chosen.why}", 5.0)
        return table.models[chosen.name]

    def _names(self, table: Table, principal: Principal) -> Sequence[str]:
        return [model.name for model in self._allowed(table, principal)]

    def _allowed(self, table: Table, principal: Principal) -> list[Model]:
        return [model for model in table.models.values() if principal.may_use(model.name, *model.aliases)]

    def _upstream(self, exchange: Exchange, headers: list[Pair], rest: str, principal: Principal) -> None:
        """Pass a request on to an engine as it is, for an operator."""
        table = self.desk.table or Table()
        if not principal.admin:
            words = "an engine's own pages need an admin key: modelsupd key add NAME --admin"
            self._refuse(exchange, headers, Trouble(403, "admin_key_needed", words), principal)
            return
        aliases = {alias: model for model in table.models.values() for alias in model.aliases}
        found = api.split_upstream(rest, {**aliases, **table.models})
        if found is None:
            self._refuse(exchange, headers, errors.not_found(rest[:100], list(table.models)), principal)
            return
        name, path = found
        if not path:
            # A page's links are relative to its folder.
            moved = f"{exchange.path}/" + (f"?{exchange.query}" if exchange.query else "")
            exchange.respond(_MOVED, [*headers, (b"location", moved.encode("latin-1", "replace"))], b"")
            return
        model = table.find(name)
        refusal = principal.enter(self.desk.clock())
        if model is None or refusal is not None:
            trouble = errors.not_found(name, ()) if refusal is None else _trouble(refusal)
            self._refuse(exchange, headers, trouble, principal, name)
            return
        errand = Errand(
            Api.OTHER,
            name,
            principal,
            headers,
            path=path + (f"?{exchange.query}" if exchange.query else ""),
            queued=False,
        )
        Serving(self.desk, exchange, errand, model).begin()

    # Answers of the gateway's own

    def _preflight(self, exchange: Exchange, headers: list[Pair], origin: str) -> None:
        if not origin or not self.ways.cors.allows(origin):
            self._refuse(exchange, headers, Trouble(403, "origin_not_allowed", "this origin may not use the gateway"))
            return
        wanted = exchange.headers.get("access-control-request-headers")
        exchange.respond(_OK, [headers[0], *self.ways.cors.preflight(origin, wanted)], b"")

    def _tell_ready(self, exchange: Exchange, headers: list[Pair]) -> None:
        table = self.desk.table
        models = list(table.models.values()) if table is not None else []
        ready = sum(model.availability is Availability.READY for model in models)
        # One that starts on demand counts while it starts, too: a host must not seem unfit for being made use of.
        startable = sum(model.on_demand and model.availability in _WAITED_FOR for model in models)
        if ready or startable:
            told = {"status": "ready", "ready": ready, "startable": startable, "models": len(models)}
            self._tell(exchange, headers, told)
            return
        retry_after_s = min((model.retry_after_s for model in models), default=1.0)
        words = f"none of {len(models)} models is ready, or starts on demand" if table is not None else _NO_TABLE.words
        self._refuse(exchange, headers, Trouble(503, "not_ready", words, retry_after_s))

    def _tell_models(self, exchange: Exchange, headers: list[Pair], table: Table, principal: Principal) -> None:
        self._tell(exchange, headers, listed(self._allowed(table, principal)))
        self._record(exchange, principal, "", _OK, "")

    def _tell_model(self, exchange: Exchange, headers: list[Pair], name: str, principal: Principal) -> None:
        table = self.desk.table or Table()
        found = table.find(name) or table.find(api.unquoted(name))
        if found is None or not principal.may_use(found.name, *found.aliases):
            shown = api.unquoted(name)[: body.MAX_MODEL_CHARS]
            self._refuse(exchange, headers, errors.not_found(shown, self._names(table, principal)), principal)
        else:
            self._tell(exchange, headers, described(found))
            self._record(exchange, principal, found.name, _OK, "")

    def _tell(self, exchange: Exchange, headers: list[Pair], value: object) -> None:
        exchange.respond(_OK, [_JSON, *headers], errors.dump(value))

    def _refuse_key(
        self, exchange: Exchange, headers: list[Pair], refusal: Refusal, principal: Principal | None, asked: str = ""
    ) -> None:
        if refusal.status == 401:  # noqa: PLR2004 - Unauthorized
            headers.append((b"www-authenticate", b'Bearer realm="modelsupd"'))
        self._refuse(exchange, headers, _trouble(refusal), principal, asked)

    def _refuse(
        self,
        exchange: Exchange,
        headers: list[Pair],
        trouble: Trouble,
        principal: Principal | None = None,
        asked: str = "",
    ) -> None:
        """Answer that it is not served, and record that."""
        spoken = api.api_of(exchange.path)
        exchange.respond(*errors.answer(spoken, trouble, exchange.request_id, headers))
        self._record(exchange, principal, asked, trouble.status, trouble.code)

    def _record(self, exchange: Exchange, principal: Principal | None, asked: str, status: int, error: str) -> None:
        """Record a request that was answered here. What watches the gateway, `/health` and `/ready`, leaves no line."""
        duration_s = self.desk.clock() - exchange.started_at
        entry = Entry(
            id=exchange.request_id,
            at=time.time() - duration_s,
            api=api.api_of(exchange.path),
            method=exchange.method,
            key=principal.name if principal is not None else "",
            asked=asked,
            status=status,
            duration_s=duration_s,
            ended_by=EndedBy.GATEWAY,
            bytes_in=len(exchange.body),
            bytes_out=exchange.sent_bytes,
            error=error,
        )
        self.desk.reports.record(entry)


def _path(exchange: Exchange) -> str | None:
    """Return the path that the engine is asked for, where it is not the client's own."""
    spelling = _SPELLINGS.get(exchange.path)
    if spelling is None:
        return None
    return f"{spelling}?{exchange.query}" if exchange.query else spelling


def _session(headers: Headers, names: tuple[bytes, ...]) -> str | None:
    for name in names:
        value = headers.first.get(name)
        if value:
            return value[:_MAX_SESSION_BYTES].decode("latin-1")
    return None


def _trouble(refusal: Refusal) -> Trouble:
    return Trouble(refusal.status, refusal.code, refusal.words, refusal.retry_after_s)
