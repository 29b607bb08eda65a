"""`start = "on-demand"` and `[models.NAME.demand]`: what is taken, and what is refused, word for word."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from configs import MODEL, problems, read
from modelsupd.config.json_schema import schema as json_schema
from modelsupd.core.demand_spec import DemandSpec
from modelsupd.core.spec import Start, launch_digest

GATEWAY = "[gateway]\n"
ON_DEMAND = 'start = "on-demand"\n'


def model(name: str, more: str = "", demand: str = "", start: str = ON_DEMAND) -> str:
    table = f"[models.{name}.demand]\n{demand}\n" if demand else ""
    return f"[models.{name}]\n{MODEL}{start}{more}\n{table}"


def test_what_is_declared_becomes_the_core_s_own_type(tmp_path: Path) -> None:
    demand = """
        idle_timeout_s = 60
        priority = -2
        pinned = true
        group = "big"
        excludes = ["big", "b"]
        residence_s = 0
        turn_s = 5
    """
    config = read(tmp_path, GATEWAY + model("a", demand=demand) + model("b"))
    assert config.declaration.models["a"].start is Start.ON_DEMAND
    assert config.declaration.models["a"].demand == DemandSpec(
        idle_timeout_s=60.0,
        priority=-2,
        pinned=True,
        group="big",
        excludes=("big", "b"),
        residence_s=0.0,
        turn_s=5.0,
    )
    assert config.declaration.models["b"].demand == DemandSpec()


def test_what_is_for_those_that_give_way_is_refused_for_others(tmp_path: Path) -> None:
    demand = "idle_timeout_s = 5\npinned = true\ngroup = 'g'\nexcludes = ['a']\nresidence_s = 1"
    for start in ("always", "manual"):
        why = f"is for start = 'on-demand', and this one starts '{start}'"
        found = problems(tmp_path, GATEWAY + model("m", demand=demand, start=f"start = '{start}'") + model("a"))
        assert found == [
            f"models.m.demand.idle_timeout_s = 5.0: {why}",
            f"models.m.demand.pinned = true: {why}",
            f"models.m.demand.group = 'g': {why}",
            f"models.m.demand.excludes = ['a']: {why}",
            f"models.m.demand.residence_s = 1.0: {why}",
        ]


def test_who_always_runs_has_a_place_in_the_order_all_the_same(tmp_path: Path) -> None:
    config = read(tmp_path, model("m", demand="priority = 3\nturn_s = 1", start=""))
    assert config.declaration.models["m"].demand == DemandSpec(priority=3, turn_s=1.0)


@pytest.mark.parametrize("gateway", ["", "[gateway]\nenabled = false\n"], ids=["none", "disabled"])
def test_without_a_gateway_nobody_can_ask(tmp_path: Path, gateway: str) -> None:
    assert problems(tmp_path, gateway + model("m")) == [
        "models.m.start = 'on-demand': only the gateway can tell of demand: add [gateway]"
    ]


@pytest.mark.parametrize("limit", ["start_wait_s", "max_queued"])
def test_one_that_nobody_waits_for_would_never_start(tmp_path: Path, limit: str) -> None:
    nobody = f"[models.m.gateway]\n{limit} = 0\n"
    where = f"models.m.gateway.{limit} = 0: "
    why = "a model that starts on demand is started by who waits for it: must be more than 0"
    assert problems(tmp_path, GATEWAY + model("m") + nobody) == [where + why]
    read(tmp_path, GATEWAY + model("m", start="") + nobody)


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ("big2", "there is no such model or group; did you mean 'big'?"),
        ("bb", "there is no such model or group; did you mean 'b'?"),
        ("zzz", "there is no such model or group"),
        ("a", "is the model itself; its own group is what keeps it off others"),
        ("c", "starts 'always' and gives way to nobody: it would keep this one out for ever"),
    ],
)
def test_whom_one_excludes_there_is_and_it_gives_way(tmp_path: Path, other: str, why: str) -> None:
    text = (
        GATEWAY
        + model("a", demand=f"excludes = ['b', '{other}']")
        + model("b", demand="group = 'big'")
        + model("c", start="")
    )
    assert problems(tmp_path, text) == [f"models.a.demand.excludes[1] = '{other}': {why}"]


def test_a_group_is_a_name_of_its_own(tmp_path: Path) -> None:
    assert problems(tmp_path, GATEWAY + model("a", demand="group = 'b'") + model("b")) == [
        "models.a.demand.group = 'b': is a model's name, and `excludes` could not tell which is meant"
    ]
    assert problems(tmp_path, GATEWAY + model("a", demand="group = ''")) == [
        "models.a.demand.group = '': is empty; leave it out for none"
    ]


def test_numbers_have_bounds_and_keys_are_known(tmp_path: Path) -> None:
    demand = "idle_timeout_s = -1\nresidence_s = -0.5\nturn_s = 'soon'\nprioritys = 1\npriority = 1.5\nexcludes = 'a'"
    assert problems(tmp_path, GATEWAY + model("a", demand=demand)) == [
        "models.a.demand.idle_timeout_s = -1: must be at least 0",
        "models.a.demand.priority = 1.5: must be an integer, not a float",
        "models.a.demand.excludes = 'a': must be a list, not a string",
        "models.a.demand.residence_s = -0.5: must be at least 0",
        "models.a.demand.turn_s = 'soon': must be a number, not a string",
        "models.a.demand.prioritys = 1: unknown key; did you mean 'priority'?",
    ]


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = (
        model("a", demand="group = 'b'\nexcludes = ['x', 'a']")
        + model("b", start="", demand="pinned = true")
        + "[models.a.gateway]\nstart_wait_s = 0\n"
    )
    found = problems(tmp_path, text)
    assert [line.partition(":")[0] for line in found] == [
        "models.a.gateway.start_wait_s = 0",
        "models.b.demand.pinned = true",
        "models.a.start = 'on-demand'",
        "models.a.demand.group = 'b'",
        "models.a.demand.excludes[0] = 'x'",
        "models.a.demand.excludes[1] = 'a'",
    ]


def test_every_setting_is_in_the_schema_with_its_words() -> None:
    tables = json_schema()["$defs"]
    settings_of = {name: table["properties"] for name, table in tables.items() if "properties" in table}
    bare = [
        (name, key) for name, each in settings_of.items() for key, shown in each.items() if "description" not in shown
    ]
    assert bare == []
    settings = tables["DemandSpec"]["properties"]
    assert settings["group"]["type"] == "string", "TOML has no null"
    assert set(settings) == {item.name for item in dataclasses.fields(DemandSpec)}
    assert all(each["description"] for each in settings.values())
    assert settings["residence_s"]["minimum"] == 0


def test_taking_turns_otherwise_restarts_nothing(tmp_path: Path) -> None:
    """What is declared about demand is the supervisor's own: the engine's process is the same."""
    plain = read(tmp_path, GATEWAY + model("a", start="")).declaration.models["a"]
    demand = "priority = 5\npinned = true\ngroup = 'g'\nexcludes = ['g']"
    other = read(tmp_path, GATEWAY + model("a", demand=demand)).declaration.models["a"]
    assert launch_digest(other) == launch_digest(plain)


def test_only_what_can_sleep_and_has_gpus_is_told_to(tmp_path: Path) -> None:
    assert problems(tmp_path, GATEWAY + model("m", demand="sleep = 1")) == [
        "models.m.demand.sleep = 1: is vLLM's: an engine of kind 'llama.cpp' cannot sleep"
    ]
    vllm = "[models.v]\nengine = 'vllm'\nweights = '/v'\nstart = 'on-demand'\ndemand.sleep = 2\n"
    assert problems(tmp_path, GATEWAY + vllm) == [
        "models.v.demand.sleep = 2: is for a model that uses GPUs, whose memory it gives back"
    ]
    assert read(tmp_path, GATEWAY + vllm + "gpus = 1\n").declaration.models["v"].demand.sleep == 2
    assert problems(tmp_path, GATEWAY + vllm + "gpus = 1\nargs.enable_sleep_mode = true\n") == [
        "models.v.args.enable_sleep_mode = true: cannot be set here: that it sleeps is said by 'demand.sleep'"
    ]
