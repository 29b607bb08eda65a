"""`[gateway]` and `[models.NAME.gateway]`: what is taken, what is refused, and what the gateway's process gets."""

from __future__ import annotations

import dataclasses
import stat
from pathlib import Path

import pytest

from configs import MODEL, problems, read
from modelsupd.core.routing import AutoRule
from modelsupd.core.spec import GatewayLimits, GatewaySpec, ModelGateway, launch_digest
from modelsupd.errors import ModelsupdError
from modelsupd.gateway import settings
from modelsupd.gateway.base import Limits, Model
from modelsupd.gateway.service import Ways

WIDE = "[gateway]\nlisten = '0.0.0.0:80'\n"

# Where it listens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("[gateway]\nenabled = false", ()),
        ("[gateway]", (("127.0.0.1", 8080),)),
        ("[gateway]\nlisten = 'localhost:0'", (("127.0.0.1", 0),)),
        ("[gateway]\nlisten = ['127.0.0.1:1', '[::1]:1']", (("127.0.0.1", 1), ("::1", 1))),
        (WIDE + "open_to_network = true", (("0.0.0.0", 80),)),  # noqa: S104 - nothing listens there
    ],
)
def test_where_it_listens(tmp_path: Path, text: str, expected: tuple[tuple[str, int], ...]) -> None:
    assert read(tmp_path, text).gateway_listen == expected


def test_beyond_loopback_it_listens_with_keys_or_when_told_so(tmp_path: Path) -> None:
    state = f"[daemon]\nstate_dir = '{tmp_path}'\n"
    [found] = problems(tmp_path, state + WIDE)
    assert found.startswith("gateway.listen = '0.0.0.0:80': whoever reaches it would be served, for there is no key")
    assert any("whoever reaches" in each for each in read(tmp_path, state + WIDE + "open_to_network = true").warnings)
    (tmp_path / "keys.json").write_text("")
    assert any("without TLS" in each for each in read(tmp_path, state + WIDE).warnings)
    tls = "tls_cert = 'a.pem'\ntls_key = 'a.key'\n"
    assert not any("gateway" in each for each in read(tmp_path, state + WIDE + tls).warnings)


# What is refused


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("listen = ''", "listen = '': must be ADDRESS:PORT, such as '127.0.0.1:8080' or '[::1]:8080'"),
        ("listen = []", "listen = []: must name an address; enabled = false turns the gateway off"),
        ("listen = ['127.0.0.1:1', 'host:1']", "listen[1] = 'host:1': must be ADDRESS:PORT, such as"),
        ("listen = ['127.0.0.1:1', '127.0.0.1:1']", "listen[1] = '127.0.0.1:1': is there twice"),
        ("listen = 8080", "listen = 8080: must be an address such as"),
        ("tls_cert = 'a'", "tls_cert = "),
        ("cors_origins = ['https://a/']", "cors_origins[0] = 'https://a/': must be an origin as browsers send it"),
        ("session_headers = ['x session']", "session_headers[0] = 'x session': must be the name of a header"),
        ("workers = 2", "workers = 2: there is one worker, and no setting for more"),
        ("warm_after_s = -1", "warm_after_s = -1: must be at least 0"),
        ("limits.vanished_after_s = 3", "limits.vanished_after_s = 3: must be at least 4"),
        ("limits.max_body_bytes = 1", "limits.max_body_bytes = 1: must be at least 1024"),
        ("limits.buffered_bytes = 65536", "limits.buffered_bytes = 65536: must be at least max_body_bytes, which is"),
        ("max_body_bytes = 1", "max_body_bytes = 1: unknown key here; it belongs in [gateway.limits]"),
        ("auto = [{}]", "auto[0].models: is required"),
        ("auto = [{models = []}]", "auto[0].models = []: must name a model"),
        ("auto = [{models = ['n']}]", "auto[0].models[0] = 'n': is no model's name or alias"),
        ("auto = [{models = ['m'], tool = true}]", "auto[0].tool = true: unknown key; did you mean 'tools'?"),
        (
            "auto = [{models = ['m'], prompt_over_tokens = 9, prompt_up_to_tokens = 9}]",
            "auto[0].prompt_up_to_tokens = 9: must be more than prompt_over_tokens, which is 9",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, setting: str, expected: str) -> None:
    [found] = problems(tmp_path, f"[gateway]\n{setting}\n[models.m]\n{MODEL}")
    assert found.startswith(f"gateway.{expected}")


def test_of_a_model_too(tmp_path: Path) -> None:
    found = problems(
        tmp_path, f"[models.m]\n{MODEL}gateway = {{max_queued = -1, capabilities = ['imges'], stall_s = 1}}"
    )
    assert [each.partition(":")[0] for each in sorted(found)] == [
        "models.m.gateway.capabilities[0] = 'imges'",
        "models.m.gateway.max_queued = -1",
        "models.m.gateway.stall_s = 1",
    ]


def test_rules_are_out_of_reach_where_a_model_has_their_name(tmp_path: Path) -> None:
    text = f"[gateway]\nauto = [{{models = ['m']}}]\n[models.m]\n{MODEL}aliases = ['auto']"
    assert problems(tmp_path, text) == ["gateway.auto: is out of reach: 'auto' is the name of a model"]


def test_what_clients_may_do_can_change_under_a_running_engine(tmp_path: Path) -> None:
    plain, limited = (
        read(tmp_path, f"[models.m]\n{MODEL}{more}").declaration.models["m"] for more in ("", "gateway.max_queued = 1")
    )
    assert plain != limited
    assert launch_digest(plain) == launch_digest(limited)


# What the process gets


def test_the_defaults_are_those_that_the_gateway_has_of_its_own() -> None:
    assert dataclasses.asdict(GatewayLimits()) == dataclasses.asdict(Limits())
    own = dataclasses.asdict(Model(name=""))
    given = settings.Settings(run="", daemon_socket="", state_dir="")
    assert (given.warm_after_s, given.session_headers) == (GatewaySpec().warm_after_s, GatewaySpec().session_headers)
    ways = Ways()
    assert ways.warm_after_s == given.warm_after_s
    assert ways.session_headers == tuple(name.encode() for name in given.session_headers)
    assert {name: own[name] for name in dataclasses.asdict(ModelGateway())} == dataclasses.asdict(ModelGateway())


def test_settings_come_back_from_their_file_as_they_were_and_nobody_else_can_read_it(tmp_path: Path) -> None:
    text = """
        [gateway]
        cors_origins = ["https://chat.example"]
        limits.max_headers = 20
        warm_after_s = 0
        session_headers = ["X-Chat"]
        access_log.files = 1
        auto = [{models = ["m"], images = true, prompt_over_tokens = 5}]
        tls_cert = "tls.pem"
        tls_key = "tls.key"
        [models.m]
        engine = "command"
        command = ["x", "{socket}"]
    """
    spec = read(tmp_path, text).declaration.gateway
    assert spec is not None
    made = settings.of_spec(
        spec, run="gateway#3", daemon_socket=tmp_path / "gateway.sock", state_dir=tmp_path, log_level="debug"
    )
    assert made.limits == dataclasses.replace(Limits(), max_headers=20)
    assert made.auto == (AutoRule(models=("m",), images=True, prompt_over=5),)
    assert (made.warm_after_s, made.session_headers) == (0, ("X-Chat",))
    assert made.tls_cert == str(tmp_path / "tls.pem")
    assert made.keys_path == tmp_path / "keys.json"
    settings.write(tmp_path / "settings.json", made)
    settings.write(tmp_path / "settings.json", made)
    assert settings.read(tmp_path / "settings.json") == made
    assert stat.S_IMODE((tmp_path / "settings.json").stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "{", "[]", '{"v": 2}', '{"v": 1}', '{"v": 1, "run": 1}'])
def test_settings_that_make_no_sense_are_said_to(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(ModelsupdError, match="cannot read the gateway's settings"):
        settings.read(tmp_path / "settings.json")
    with pytest.raises(ModelsupdError, match="no such file"):
        settings.read(tmp_path / "missing.json")


def test_a_gateway_has_defaults_for_all(tmp_path: Path) -> None:
    assert read(tmp_path, "[gateway]").declaration.gateway == GatewaySpec()
