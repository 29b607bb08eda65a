"""Official clients through the gateway to a real llama-server: streams and whole answers, cancelled ones and tools."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anthropic
import openai
import pytest

import llama_server
import tiny_gguf
from hosts import QUICK, STEADY, Host, alive, host, settled
from waiting import until

pytestmark = pytest.mark.real

#: Tokens that each of four places has room for, and how many a stream asks for that is not to come to its own end: more
#: than fit into all that lies between the engine and a client that does not read.
CONTEXT, ENDLESS = 16384, 16000

#: Plain dictionaries, which the clients take and their types do not.
ASKED: Any = [{"role": "user", "content": "Tell me of the quiet token."}]


class Served:
    """A daemon with a real llama-server behind its gateway."""

    def __init__(self, daemon: Host) -> None:
        self.daemon = daemon
        daemon.until_phase("ready")

        def listens() -> bool:
            told = daemon.client.status()["gateway"]
            return bool(told["listen"]) and any(run["accepts"] for run in told["runs"])

        until(listens, what=daemon.said)
        self.address = daemon.client.status()["gateway"]["listen"][0]
        self.url = f"http://{self.address}"

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def cancelled(self) -> int:
        """Return how many requests were ended by their clients, as the record tells."""
        log = self.daemon.state / "gateway" / "access.log"
        lines = log.read_text().splitlines() if log.exists() else []
        return sum(json.loads(line)["ended_by"] == "client" for line in lines)

    def in_flight(self) -> int:
        """Return how many requests the gateway says that it is working on."""
        (run,) = self.daemon.client.status()["gateway"]["runs"]
        words = Path(f"/proc/{run['pid']}/cmdline").read_text().split("\0")
        with socket.socket(socket.AF_UNIX) as admin:
            admin.connect(words[words.index("--admin") + 1])
            admin.sendall(b"GET /health HTTP/1.1\r\n\r\n")
            answer = b"".join(iter(lambda: admin.recv(65536), b""))
        return int(json.loads(answer.partition(b"\r\n\r\n")[2])["in_flight"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("w") / "tiny.gguf"
    tiny_gguf.write(path, context_length=CONTEXT)
    return settled(path)


@contextmanager
def serving(place: Path, weights: Path, limits: str = STEADY, stall_s: float = 60) -> Iterator[Served]:
    binary = llama_server.find()
    if binary is None:
        pytest.fail("there is no llama-server on PATH or in the cache: run 'make engines' first")
    patient = limits.format(name="m").replace("drain_timeout_s = 2", "drain_timeout_s = 30")
    models = (
        f"[gateway]\nlisten = '127.0.0.1:0'\n[models.m]\nengine = 'llama.cpp'\nbinary = '{binary}'\n"
        f"weights = '{weights}'\naliases = ['gpt-4o-mini']\n"
        f"[models.m.args]\nctx_size = {4 * CONTEXT}\nparallel = 4\n{patient}"
        f"[models.m.gateway]\nstream_stall_s = {stall_s}\nstart_wait_s = 60\n"
    )
    with host(place, models) as daemon:
        yield Served(daemon)


@pytest.fixture
def served(place: Path, weights: Path) -> Iterator[Served]:
    with serving(place, weights) as one:
        yield one


def test_the_openai_client_streams_and_does_not(served: Served) -> None:
    with served.openai() as client:
        whole = client.chat.completions.create(model="m", messages=ASKED, max_tokens=6)
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 6
        pieces = list(client.chat.completions.create(model="gpt-4o-mini", messages=ASKED, max_tokens=6, stream=True))
        assert sum(bool(piece.choices and piece.choices[0].delta.content) for piece in pieces) >= 5
        assert pieces[-1].choices[0].finish_reason == "length" or pieces[-2].choices[0].finish_reason == "length"
        text = client.completions.create(model="m", prompt="quiet", max_tokens=3)
        assert text.choices[0].text
        assert [model.id for model in client.models.list()] == ["m"]
        with pytest.raises(openai.NotFoundError, match="m"):
            client.chat.completions.create(model="n", messages=ASKED)


TOOLS: Any = [
    {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
    }
]
SCHEMA = {"type": "object", "properties": {"a": {"enum": [1]}}, "required": ["a"], "additionalProperties": False}
GRAMMAR = 'root ::= "{" ["] "a" ["] ":" ("true" | "false") "}"'


def test_tools_and_json_reach_the_engine_and_come_back(served: Served) -> None:
    """As far as the tiny model goes: it is offered tools and calls none, and writes JSON where it is made to."""
    with served.openai() as client:
        whole = client.chat.completions.create(model="m", messages=ASKED, max_tokens=4, tools=TOOLS)
        assert whole.choices[0].message.content
        pieces = list(client.chat.completions.create(model="m", messages=ASKED, max_tokens=4, tools=TOOLS, stream=True))
        assert any(piece.choices and piece.choices[0].finish_reason for piece in pieces)
        more = {"grammar": GRAMMAR}
        whole = client.chat.completions.create(model="m", messages=ASKED, max_tokens=40, extra_body=more)
        assert json.loads(whole.choices[0].message.content or "") in ({"a": True}, {"a": False})
        stream = client.chat.completions.create(model="m", messages=ASKED, max_tokens=40, extra_body=more, stream=True)
        said = "".join(piece.choices[0].delta.content or "" for piece in stream if piece.choices)
        assert json.loads(said) in ({"a": True}, {"a": False})
        text = client.completions.create(model="m", prompt="x", max_tokens=200, extra_body={"json_schema": SCHEMA})
        assert "".join(text.choices[0].text.split()).startswith('{"a"')
        # With the tiny model's template this engine has no grammar for it: the client gets the engine's own refusal.
        with pytest.raises(openai.BadRequestError, match="samplers"):
            client.chat.completions.create(model="m", messages=ASKED, response_format={"type": "json_object"})


def test_the_anthropic_client_streams_and_does_not(served: Served) -> None:
    with anthropic.Anthropic(base_url=served.url, api_key="none", max_retries=0, timeout=60) as client:
        whole = client.messages.create(model="m", messages=ASKED, max_tokens=6)
        assert whole.usage.output_tokens == 6
        with client.messages.stream(model="m", messages=ASKED, max_tokens=6) as stream:
            assert "".join(stream.text_stream)
            assert stream.get_final_message().stop_reason == "max_tokens"


def test_the_responses_api_streams(served: Served) -> None:
    with served.openai() as client:
        events = [
            event.type for event in client.responses.create(model="m", input="quiet", max_output_tokens=6, stream=True)
        ]
        assert events[0] == "response.created"
        assert "response.completed" in events[-1] or "response.incomplete" in events[-1]


def test_curl_streams(served: Served) -> None:
    body = json.dumps({"model": "m", "messages": ASKED, "max_tokens": 5, "stream": True})
    done = subprocess.run(
        ["curl", "-sSN", f"{served.url}/v1/chat/completions", "-H", "Content-Type: application/json", "-d", body],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.rstrip().endswith("data: [DONE]")


#: The client of JavaScript, as people install it; kept in the user's cache beside engines.
JS_CLIENT = "openai@7.57.0"
JS = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "none", maxRetries: 0 });
const asked = { model: "m", messages: [{ role: "user", content: "quiet" }], max_tokens: 5 };
const whole = await client.chat.completions.create(asked);
let pieces = 0;
for await (const piece of await client.chat.completions.create({ ...asked, stream: true }))
  if (piece.choices[0]?.delta?.content) pieces += 1;
for await (const piece of await client.chat.completions.create({ ...asked, max_tokens: 16000, stream: true }))
  if (piece.choices[0]?.delta?.content) break;
console.log(JSON.stringify([whole.usage.completion_tokens, pieces]));
"""


def test_the_javascript_client_streams_and_does_not(served: Served) -> None:
    if shutil.which("npm") is None:
        pytest.skip("needs node and npm")
    folder = llama_server.cache_dir().parent / "clients" / JS_CLIENT.replace("@", "-")
    if not (folder / "node_modules" / "openai").exists():
        folder.mkdir(parents=True, exist_ok=True)
        install = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), JS_CLIENT]
        subprocess.run(install, check=True, timeout=120)
    (folder / "ask.mjs").write_text(JS)
    command = ["node", str(folder / "ask.mjs"), f"{served.url}/v1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    tokens, pieces = json.loads(done.stdout)
    assert tokens == 5
    assert pieces >= 4
    until(lambda: served.cancelled() == 1, what="the stream that it broke out of is on record")


def test_clients_that_go_away_free_the_engine(served: Served) -> None:
    """One after another, as each client does it: none of the four places is left taken."""
    with served.openai() as client, anthropic.Anthropic(base_url=served.url, api_key="none", timeout=60) as other:
        for _ in range(4):
            stream = client.chat.completions.create(model="m", messages=ASKED, max_tokens=ENDLESS, stream=True)
            next(iter(stream))
            stream.close()
        with other.messages.stream(model="m", messages=ASKED, max_tokens=ENDLESS) as left:
            next(iter(left.text_stream))
        body = json.dumps({"model": "m", "messages": ASKED, "max_tokens": ENDLESS, "stream": True})
        words = [
            "curl",
            "-sSN",
            f"{served.url}/v1/chat/completions",
            "-H",
            "Content-Type: application/json",
            "-d",
            body,
        ]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as curl:
            assert curl.stdout is not None
            assert curl.stdout.readline()
            curl.terminate()
        until(lambda: served.cancelled() == 6, what="the abandoned streams are on record")
        whole = client.chat.completions.create(model="m", messages=ASKED, max_tokens=1)
        assert whole.choices[0].finish_reason == "length"
    assert served.daemon.replica()["run"] == 1


def test_killed_before_the_first_byte_the_client_sees_a_normal_answer(served: Served) -> None:
    first = served.daemon.replica()
    os.kill(first["pid"], signal.SIGSTOP)
    with served.openai() as client, ThreadPoolExecutor(1) as thread:
        asked = thread.submit(client.chat.completions.create, model="m", messages=ASKED, max_tokens=2)
        until(lambda: served.in_flight() == 1, what="the request is with the engine")
        os.kill(first["pid"], signal.SIGKILL)
        assert asked.result(60).choices[0].finish_reason == "length"
    assert served.daemon.replica()["run"] == 2


def stream_text(client: openai.OpenAI, tokens: int) -> Any:  # noqa: ANN401 - the client's own type
    return client.chat.completions.create(model="m", messages=ASKED, max_tokens=tokens, stream=True)


def test_killed_in_the_middle_there_is_one_error_and_then_service(served: Served) -> None:
    first = served.daemon.replica()
    with served.openai() as client:
        stream = stream_text(client, ENDLESS)
        next(iter(stream))
        os.kill(first["pid"], signal.SIGKILL)
        with pytest.raises(openai.APIError):
            list(stream)
        # The next request waits for the restart.
        again = client.chat.completions.create(model="m", messages=ASKED, max_tokens=2)
        assert again.choices[0].finish_reason == "length"
    assert served.daemon.until_phase("ready", run=2)["pid"] != first["pid"]


def test_stopped_in_the_middle_it_is_a_stall_and_the_run_is_judged_hung(place: Path, weights: Path) -> None:
    with serving(place, weights, QUICK, stall_s=2) as served:
        first = served.daemon.replica()
        with served.openai() as client:
            stream = stream_text(client, ENDLESS)
            next(iter(stream))
            os.kill(first["pid"], signal.SIGSTOP)
            with pytest.raises(openai.APIError):
                list(stream)
        served.daemon.until_phase("ready", run=2)
        assert not alive(first["pid"])


def test_a_stop_lets_twenty_streams_finish(served: Served) -> None:
    with served.openai() as client:
        streams = [stream_text(client, 30) for _ in range(20)]
        served.daemon.client.command("stop", "m")
        for stream in streams:
            pieces = list(stream)
            assert any(piece.choices and piece.choices[0].finish_reason for piece in pieces)
    served.daemon.until_phase("stopped")
