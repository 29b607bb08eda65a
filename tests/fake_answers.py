"""What the fake engine answers, connection by connection. See fake_engine."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from typing import Any

from fake_faults import Engine, start_faults

WORDS = ("a", "patient", "engine", "counts", "its", "tokens", "one", "by", "one", "and", "forgets", "them", "again")


class Connection:
    """One connection: requests one after the other, each answered in full before the next."""

    def __init__(self, engine: Engine, sock: socket.socket) -> None:
        self.engine = engine
        self.sock = sock
        self.buffer = b""
        self.query = ""

    def serve(self) -> None:
        """Serve until the client goes."""
        try:
            while (request := self.read()) is not None:
                self.answer(*request)
        except OSError:
            self.engine.count(aborted=1)
        finally:
            self.sock.close()

    def read(self) -> tuple[str, str, bytes] | None:
        """Return method, path and body of the next request, None at the end of the connection."""
        while b"\r\n\r\n" not in self.buffer:
            if not self.more():
                return None
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        length = int(headers.get("content-length", 0))
        while len(self.buffer) < length:
            if not self.more():
                return None
        body, self.buffer = self.buffer[:length], self.buffer[length:]
        method, path, _ = lines[0].split(" ", 2)
        path, _, self.query = path.partition("?")
        return method, path, body

    def more(self) -> bool:
        data = self.sock.recv(65536)
        self.buffer += data
        return bool(data)

    def send(self, status: int, body: object, kind: str = "application/json") -> None:
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\n\r\n"
        self.sock.sendall(head.encode() + data)

    def error(self, status: int, message: str, kind: str) -> None:
        self.send(status, {"error": {"code": status, "message": message, "type": kind}})

    def answer(self, method: str, path: str, body: bytes) -> None:  # noqa: C901 - one case a path
        """Answer one request; the faults come first."""
        faults = self.engine.faults
        generates = path in ("/v1/completions", "/v1/chat/completions", "/v1/embeddings")
        if path == "/fake":
            self.fake(method, body)
            return
        hangs = {"completions": generates, "loop": generates or path == "/metrics", "all": True}
        if hangs.get(faults.hang):
            self.engine.hang()
        if self.engine.sleeps is not None and generates:
            # The real one would touch memory that is not there any more.
            self.engine.log("asked to generate while asleep", "E")
            os._exit(139)
        if not self.engine.ready:
            self.error(503, "Loading model", "unavailable_error")
        elif path in ("/health", "/v1/health"):
            self.send(200, {"status": "ok"})
        elif self.engine.vllm and os.environ.get("VLLM_SERVER_DEV_MODE") == "1" and self.sleep(method, path):
            pass
        elif path == "/metrics":
            self.send(200, metrics(self.engine), "text/plain; version=0.0.4")
        elif path in ("/v1/models", "/models"):
            model = {"id": self.engine.model, "object": "model", "owned_by": "fake"}
            self.send(200, {"object": "list", "data": [model]})
        elif not generates:
            self.error(404, "File Not Found", "not_found_error")
        elif self.engine.vllm and json.loads(body).get("model") != self.engine.model:
            self.error(404, "The model does not exist.", "NotFoundError")
        elif faults.busy:
            self.error(faults.busy, "too many requests", "unavailable_error")
        else:
            self.generate(path, body)

    def sleep(self, method: str, path: str) -> bool:
        """Do what vLLM does on its paths for developers; return whether this was one of them."""
        engine, query = self.engine, self.query
        if path == "/is_sleeping":
            self.send(200, {"is_sleeping": engine.sleeps is not None})
            return True
        if method != "POST" or path not in ("/sleep", "/wake_up", "/collective_rpc"):
            return False
        engine.orders.append(f"{path}?{query}" if query else path)
        if engine.faults.sleep_fails:
            self.error(500, "CUDA error: out of memory", "InternalServerError")
            return True
        time.sleep(engine.faults.sleep_s)
        if path == "/sleep":
            engine.sleeps = int(dict(pair.split("=") for pair in query.split("&"))["level"])
        elif path == "/wake_up" and query in ("", "tags=kv_cache"):
            engine.sleeps = None
        engine.on_sleep(engine.sleeps is not None)
        self.send(200, {"status": "done"})
        return True

    def fake(self, method: str, body: bytes) -> None:
        """Change the faults, and tell what there is to tell."""
        engine = self.engine
        try:
            for name, value in json.loads(body or b"{}").items() if method == "POST" else ():
                engine.faults.set(name, value)
        except ValueError as error:
            self.error(400, str(error), "invalid_request_error")
            return
        told = {"faults": engine.faults.all(), "counts": engine.counts, "in_flight": engine.in_flight}
        told["orders"] = engine.orders
        self.send(200, {**told, "pid": os.getpid(), "argv": sys.argv, "environ": dict(os.environ)})
        start_faults(engine)  # one that ends this process must not end the answer

    def generate(self, path: str, body: bytes) -> None:
        """Answer a completion, chat or embedding; counts as in flight for as long as it takes."""
        try:
            asked = json.loads(body)
        except ValueError:
            self.error(400, "parse error: the body is no JSON", "invalid_request_error")
            return
        engine = self.engine
        with engine.lock:
            engine.in_flight += 1
        try:
            time.sleep(engine.faults.delay_s)
            if path == "/v1/embeddings":
                self.embed(asked)
            elif asked.get("stream"):
                self.stream(asked, chat=path.endswith("chat/completions"))
            else:
                self.complete(asked, chat=path.endswith("chat/completions"))
        finally:
            with engine.lock:
                engine.in_flight -= 1
        engine.count(answered=1)
        if engine.counts["answered"] == engine.faults.exit_after_requests:
            engine.end()

    def tokens(self, asked: dict[str, Any]) -> Iterator[str]:
        """Yield the tokens, counted one by one."""
        faults = self.engine.faults
        prompt = str(asked.get("prompt") or asked.get("messages") or "").split()
        self.engine.count(prompt=len(prompt) or 1)
        limit = asked.get("max_tokens") or asked.get("max_completion_tokens") or 16
        for index in range(0 if faults.zero_tokens else limit):
            time.sleep(faults.token_s)
            if faults.hang:
                self.engine.hang()
            if self.engine.ended.is_set() and faults.term == "wait":
                self.wait_for_client_to_go()
            self.engine.count(predicted=1, decode=1)
            yield " " + WORDS[index % len(WORDS)]

    def wait_for_client_to_go(self) -> None:
        """Freeze, as llama-server does between SIGTERM and the end of its clients."""
        while self.sock.recv(1, socket.MSG_PEEK):
            time.sleep(0.01)
        raise ConnectionAbortedError

    def shape(self, *, chat: bool, chunk: bool) -> dict[str, Any]:
        kind = ("chat.completion" if chat else "text_completion") + (".chunk" if chat and chunk else "")
        return {"id": "fake-1", "object": kind, "created": int(time.time()), "model": self.engine.model}

    def usage(self, asked: dict[str, Any], said: int) -> dict[str, int]:
        prompt = len(str(asked.get("prompt") or asked.get("messages") or "").split()) or 1
        return {"prompt_tokens": prompt, "completion_tokens": said, "total_tokens": prompt + said}

    def complete(self, asked: dict[str, Any], *, chat: bool) -> None:
        said = list(self.tokens(asked))
        text = "".join(said)
        choice: dict[str, Any] = {"index": 0, "finish_reason": "length" if said else "stop"}
        choice |= {"message": {"role": "assistant", "content": text}} if chat else {"text": text, "logprobs": None}
        shape = self.shape(chat=chat, chunk=False)
        self.send(200, {**shape, "choices": [choice], "usage": self.usage(asked, len(said))})

    def stream(self, asked: dict[str, Any], *, chat: bool) -> None:
        """Answer with server-sent events, one for each token, in chunked encoding."""
        self.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        shape = self.shape(chat=chat, chunk=True)
        said = 0
        if chat:
            self.event({**shape, "choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]})
        for text in self.tokens(asked):
            part = {"delta": {"content": text}} if chat else {"text": text}
            self.event({**shape, "choices": [{"index": 0, **part, "finish_reason": None}]})
            said += 1
            if said == self.engine.faults.exit_after_chunks:
                self.engine.end()
            if said == 2 and self.engine.faults.stream_fault and not self.break_stream():
                return
        reason = None if self.engine.faults.stream_fault == "null-finish" else "length" if said else "stop"
        nothing: dict[str, Any] = {"delta": {}} if chat else {"text": ""}
        last = {"index": 0, **nothing, "finish_reason": reason}
        self.event({**shape, "choices": [last], "usage": self.usage(asked, said)})
        self.chunk(b"data: [DONE]\n\n")
        self.chunk(b"")

    def break_stream(self) -> bool:
        """Do what the fault says in the middle of a stream; return whether the stream goes on."""
        fault = self.engine.faults.stream_fault
        if fault == "error":
            self.event({"error": {"message": "engine died", "type": "InternalServerError", "code": 500}})
            self.chunk(b"data: [DONE]\n\n")
            self.chunk(b"")
        elif fault == "cut":
            self.sock.shutdown(socket.SHUT_RDWR)
        elif fault == "freeze":
            while self.engine.faults.stream_fault == "freeze":
                time.sleep(0.02)
        return fault in ("freeze", "null-finish")

    def event(self, data: object) -> None:
        self.chunk(f"data: {json.dumps(data)}\n\n".encode())

    def chunk(self, data: bytes) -> None:
        self.sock.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def embed(self, asked: dict[str, Any]) -> None:
        given = asked.get("input")
        texts = given if isinstance(given, list) else [given]
        self.engine.count(prompt=len(texts), decode=1)
        vector = [] if self.engine.faults.zero_tokens else [round(0.1 * n, 1) for n in range(8)]
        data = [{"object": "embedding", "index": n, "embedding": vector} for n in range(len(texts))]
        self.send(200, {"object": "list", "data": data, "model": self.engine.model, "usage": self.usage(asked, 0)})


def metrics(engine: Engine) -> str:
    """Return the counters under llama-server's names."""
    counts = engine.counts
    told = {
        "prompt_tokens_total": counts["prompt"],
        "tokens_predicted_total": counts["predicted"],
        "n_decode_total": counts["decode"],
        "requests_processing": engine.in_flight,
        "requests_deferred": 0,
    }
    if engine.vllm:
        names = {
            "prompt_tokens_total": "prompt_tokens_total",
            "generation_tokens_total": "tokens_predicted_total",
            "iteration_tokens_total_count": "n_decode_total",
            "num_requests_running": "requests_processing",
            "num_requests_waiting": "requests_deferred",
        }
        return "".join(
            f'vllm:{name}{{engine="0",model_name="{engine.model}"}} {float(told[of])}\n' for name, of in names.items()
        )
    return "".join(f"# TYPE llamacpp:{name} counter\nllamacpp:{name} {value}\n" for name, value in told.items())
