"""The admin API of the daemon, on a unix socket that only its own user and root may use.

Two rules:

1. Nothing here decides or waits for an engine: it shows what is published and hands commands to the daemon.
2. Whoever asks is known by the kernel's word (SO_PEERCRED), and that name is what the journal keeps.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import pwd
import re
import socket
import stat
import struct
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web

from modelsupd.control.port import Port, Refused
from modelsupd.control.secrets import MASK, masked_argv, masked_names, shown_spec
from modelsupd.control.status import document
from modelsupd.control.wire import GPU_VERBS, SOCKET_NAME, VERBS
from modelsupd.core.fleet import UnknownTarget, targets
from modelsupd.core.phases import Replica
from modelsupd.errors import ConfigError, ModelsupdError

log = structlog.get_logger("control")

#: Of one request; a command is a few hundred bytes.
LARGEST_BODY_BYTES = 64 * 1024

#: The variable by which the processes of a run are known.
RUN_MARK = "MODELSUPD_RUN"

_UCRED = struct.Struct("3i")
_BY = web.RequestKey("by", str)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _BadRequest(Exception):  # noqa: N818 - named as HTTP does
    """A request that makes no sense."""


#: What each error is in HTTP; the first that fits counts.
_STATUSES: Mapping[type[Exception], int] = {_BadRequest: 400, UnknownTarget: 404, ConfigError: 422, ModelsupdError: 409}


async def serve(port: Port, runtime_dir: Path) -> Callable[[], Awaitable[None]]:
    """Listen in the runtime directory; return what ends that. Raises ModelsupdError where it cannot.

    The caller holds the directory's lock, so a socket that is there already is a stale one, and is removed.
    """
    server = _Server(port, runtime_dir / SOCKET_NAME)
    await server.start()
    return server.close


class _Server:
    def __init__(self, port: Port, path: Path) -> None:
        self._path = path
        self._port = port
        self._runner: web.AppRunner | None = None
        self._followers: set[asyncio.Task[Any]] = set()

    async def start(self) -> None:
        app = web.Application(middlewares=[self._errors, _guard], client_max_size=LARGEST_BODY_BYTES)
        app.add_routes(
            [
                web.get("/v1/version", self._version, allow_head=False),
                web.get("/v1/status", self._status, allow_head=False),
                web.get("/v1/targets", self._targets, allow_head=False),
                web.get("/v1/show", self._show, allow_head=False),
                web.get("/v1/events", self._events, allow_head=False),
                web.post("/v1/command", self._command),
                web.get("/v1/plan", self._plan, allow_head=False),
                web.get("/v1/gpus", self._gpus, allow_head=False),
                web.post("/v1/gpu", self._gpu),
                web.post("/v1/reload", self._reload),
            ]
        )
        # A handler whose client went away is cancelled, so that nobody is followed for who no longer listens.
        runner = web.AppRunner(
            app, access_log=None, handle_signals=False, shutdown_timeout=1.0, handler_cancellation=True
        )
        await runner.setup()
        try:
            await web.SockSite(runner, _bound(self._path)).start()
        except BaseException:
            await runner.cleanup()
            raise
        self._runner = runner

    async def close(self) -> None:
        if self._runner is None:
            return
        for task in self._followers:
            task.cancel()
        await self._runner.cleanup()
        self._runner = None
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    @web.middleware
    async def _errors(self, request: web.Request, handler: _Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except Refused as error:
            return _error(409 if self._port.journal()[1] is None else 503, str(error))
        except tuple(_STATUSES) as error:
            return _error(next(status for kind, status in _STATUSES.items() if isinstance(error, kind)), str(error))
        except web.HTTPNotFound:
            return _error(404, f"cannot find '{request.path}': this daemon does not serve it")
        except web.HTTPException as error:
            return _error(error.status, error.reason)
        except Exception as error:
            log.exception("request failed", path=request.path)
            return _error(500, f"cannot answer: {error!r}; the daemon's log tells more")

    async def _version(self, _request: web.Request) -> web.Response:
        port = self._port
        facts = {"version": port.version, "pid": port.pid}
        return web.json_response(facts | {"state_dir": str(port.state_dir), "runtime_dir": str(port.runtime_dir)})

    async def _status(self, _request: web.Request) -> web.Response:
        return web.json_response(document(self._port))

    async def _targets(self, request: web.Request) -> web.Response:
        return web.json_response({"replicas": targets(self._port.replicas(), _target(request.query))})

    async def _show(self, request: web.Request) -> web.Response:
        replicas = self._port.replicas()
        reveal = _flag(request, "reveal")
        names = targets(replicas, _target(request.query))
        return web.json_response({"replicas": [self._shown(replicas[name], reveal=reveal) for name in names]})

    def _shown(self, replica: Replica, *, reveal: bool) -> dict[str, Any]:
        launch = self._port.launch_plan(replica.name)
        masked = masked_names(launch.env, {*launch.secret_names, *replica.spec.env})
        env = {name: MASK if name in masked and not reveal else value for name, value in launch.env.items()}
        # Whoever runs the command by hand must not carry the mark by which leftovers of a run are found and ended.
        env.pop(RUN_MARK, None)
        spec = shown_spec(dataclasses.asdict(replica.spec), env, reveal=reveal)
        argv = list(launch.argv) if reveal else masked_argv(launch.argv)
        return {
            "name": replica.name,
            "model": replica.model,
            "argv": argv,
            "env": env,
            "masked": [] if reveal else sorted(masked),
            "spec": spec,
        }

    async def _command(self, request: web.Request) -> web.Response:
        body = await _body(request)
        verb, target = body.get("verb"), _target(body)
        if verb not in VERBS:
            raise _BadRequest(f"cannot carry out '{verb}': there are {', '.join(VERBS)}")
        # A command that was taken is carried out, whether or not whoever gave it waits for the answer.
        names = await asyncio.shield(self._port.command(str(verb), target, request[_BY]))
        return web.json_response({"replicas": names})

    async def _plan(self, request: web.Request) -> web.Response:
        return web.json_response({"replicas": list(await self._port.plan(_target(request.query)))})

    async def _gpus(self, _request: web.Request) -> web.Response:
        rows, notes = await self._port.look_at_gpus()
        return web.json_response({"gpus": list(rows), "notes": list(notes)})

    async def _gpu(self, request: web.Request) -> web.Response:
        body = await _body(request)
        verb, target, why = body.get("verb"), _target(body), body.get("why") or ""
        if verb not in GPU_VERBS or not isinstance(why, str):
            raise _BadRequest(f"cannot carry out '{verb}' on a GPU: there are {', '.join(GPU_VERBS)}")
        uuid = await asyncio.shield(self._port.gpu_command(str(verb), target, request[_BY], why))
        return web.json_response({"uuid": uuid})

    async def _reload(self, _request: web.Request) -> web.Response:
        return web.json_response({"changes": await asyncio.shield(self._port.reload())})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        try:
            after_seq = int(request.query.get("after", "0"))
        except ValueError:
            after = request.query["after"]
            raise _BadRequest(f"cannot start after record '{after}': that is no number") from None
        names = targets(self._port.replicas(), _target(request.query)) if "target" in request.query else None
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        # What the journal holds now is sent either way; only a follower goes on to what is still to come.
        last_seq = None if _flag(request, "follow") else self._port.journal()[0]
        if last_seq is None or after_seq < last_seq:
            await self._stream(response, after_seq, last_seq, names)
        with contextlib.suppress(ConnectionError):
            await response.write_eof()
        return response

    async def _stream(
        self, response: web.StreamResponse, after_seq: int, last_seq: int | None, names: tuple[str, ...] | None
    ) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a handler runs in a task
        self._followers.add(task)
        records = self._port.records(after_seq)
        try:
            async for record in records:
                if record.get("kind") != "snapshot" and (names is None or record.get("replica") in names):
                    await response.write(json.dumps(record).encode() + b"\n")
                if last_seq is not None and record.get("seq", 0) >= last_seq:
                    break
        except ConnectionError:
            pass  # whoever followed went away, which is how following ends
        finally:
            self._followers.discard(task)
            closing = getattr(records, "aclose", None)
            if closing is not None:
                await closing()


def _bound(path: Path) -> socket.socket:
    """Return a socket bound to `path`, 0600 in a directory of 0700; what is there and is no socket is left alone."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ModelsupdError(f"cannot listen on '{path}': a file of that name is there and is no socket")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ModelsupdError(f"cannot listen on '{path}': {(error.strerror or str(error)).lower()}") from error
    return listener


def peer_uid(connection: socket.socket) -> int:
    """Return the user at the other end of a unix socket, as the kernel knows it (unix(7), SO_PEERCRED)."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(raw)[1])


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"uid {uid}"


@web.middleware
async def _guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
    connection = request.transport.get_extra_info("socket") if request.transport else None
    if connection is None:
        return _error(403, "cannot take this: the connection does not tell who asks")
    uid = peer_uid(connection)
    if uid not in (0, os.getuid()):
        allowed = " and ".join(dict.fromkeys((_user(os.getuid()), _user(0))))
        return _error(403, f"cannot take this from {_user(uid)}: only {allowed} may ask")
    request[_BY] = _user(uid)
    return await handler(request)


def _error(status: int, message: str) -> web.Response:
    return web.json_response({"error": {"message": message}}, status=status)


def _target(source: Mapping[str, Any]) -> str:
    target = source.get("target")
    if not isinstance(target, str) or not target:
        raise _BadRequest("cannot tell what is meant: 'target' is missing")
    return target


def _flag(request: web.Request, name: str) -> bool:
    return re.fullmatch("1|true|yes", request.query.get(name, "")) is not None


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.read())
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise _BadRequest("cannot read the request: its body is no JSON object")
    return body
