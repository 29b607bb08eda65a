"""What models.toml may say, and what is said about one that is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from configs import MODEL, problems, read
from modelsupd.core.spec import Engine, EngineSpec, HealthLimits, ModelSpec, Start

REPLICAS = "must be a number from 1 to 512, or 'per-gpu'"


def test_a_declaration_becomes_the_core_s_own_types(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        """
        [engines."llama.cpp"]
        binary = "bin/llama-server"
        [models."qwen3:8b"]
        aliases = ["gpt-4o-mini", "org/qwen"]
        engine = "llama.cpp"
        weights = "~/m.gguf"
        replicas = 2
        start = "manual"
        [models."qwen3:8b".args]
        ctx_size = 512
        temp = 0.5
        mlock = false
        override_kv = ["a=int:1", "b=int:2"]
        [models."qwen3:8b".env]
        OMP_NUM_THREADS = "2"
        [models."qwen3:8b".health]
        hang_after_s = 5
        """,
    )
    model = config.declaration.models["qwen3:8b"]
    assert model == ModelSpec(
        engine=Engine.LLAMA_CPP,
        aliases=("gpt-4o-mini", "org/qwen"),
        weights="/home/ada/m.gguf",
        replicas=2,
        start=Start.MANUAL,
        args={"ctx_size": 512, "temp": 0.5, "mlock": False, "override_kv": ("a=int:1", "b=int:2")},
        env={"OMP_NUM_THREADS": "2"},
        health=HealthLimits(hang_after_s=5.0),
    )
    assert type(model.health.hang_after_s) is float
    assert model.args["mlock"] is False
    assert type(model.args["ctx_size"]) is int
    assert config.declaration.engines == {"llama.cpp": EngineSpec(binary=f"{tmp_path}/bin/llama-server")}
    assert config.metrics_listen == ("127.0.0.1", 9310)
    assert config.warnings == (
        f"{tmp_path}/models.toml sets environment values and every user can read it: chmod o-r if one is a secret",
    )


def test_paths_are_relative_to_the_file_and_bare_names_are_left_for_path(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        f"""
        [daemon]
        state_dir = "state"
        [models.a]
        {MODEL.splitlines()[0]}
        weights = "../w/m.gguf"
        binary = "llama-server"
        [models.b]
        engine = "command"
        command = ["./serve.py", "--uds", "{{socket}}", "./left.alone"]
        [models.c]
        engine = "command"
        command = ["python3", "{{port}}"]
        """,
    )
    models = config.declaration.models
    assert config.state_dir == tmp_path / "state"
    assert models["a"].weights == f"{tmp_path}/../w/m.gguf"
    assert models["a"].binary == "llama-server"
    assert models["b"].command == (f"{tmp_path}/serve.py", "--uds", "{socket}", "./left.alone")
    assert models["c"].command[0] == "python3"


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ('replicas = "5"', f"models.m.replicas = '5': {REPLICAS}"),
        ("replicas = true", f"models.m.replicas = true: {REPLICAS}"),
        ("replicas = 1.0", f"models.m.replicas = 1.0: {REPLICAS}"),
        ("replicas = 0", "models.m.replicas = 0: must be at least 1"),
        ("replicas = 513", "models.m.replicas = 513: must be at most 512"),
        ("aliases = 'x'", "models.m.aliases = 'x': must be a list, not a string"),
        ("aliases = ['x', 3]", "models.m.aliases[1] = 3: must be a string, not an integer"),
        (
            "start = 'manuel'",
            "models.m.start = 'manuel': must be 'always', 'on-demand' or 'manual'; did you mean 'manual'?",
        ),
        ("env = 3", "models.m.env: must be a table, not an integer"),
        ("env.A = 3", "models.m.env.A: must be a string, not an integer"),
        (
            "env.A-B = 's3cret'",
            "models.m.env.A-B: a variable's name is letters, digits and _, and begins with no digit",
        ),
        ("health.probe_timeout_s = 0", "models.m.health.probe_timeout_s = 0: must be greater than 0"),
        ("health.probe_timeout_s = inf", "models.m.health.probe_timeout_s = inf: must be a finite number"),
        ("health.probe_timeout_s = true", "models.m.health.probe_timeout_s = true: must be a number, not a boolean"),
        (
            "log.max_bytes = 99999999999999999999",
            "models.m.log.max_bytes: must be an integer of at most 64 bits",
        ),
        ("health.hang_afer_s = 4", "models.m.health.hang_afer_s = 4: unknown key; did you mean 'hang_after_s'?"),
        ("hang_after_s = 4", "models.m.hang_after_s = 4: unknown key here; it belongs in [models.NAME.health]"),
        ("wieghts = 'x'", "models.m.wieghts = 'x': unknown key; did you mean 'weights'?"),
        (
            "ctx_size = 1",
            "models.m.ctx_size = 1: unknown key; the engine's own flags belong in [models.NAME.args]",
        ),
        ("api_key = 's3cret'", "models.m.api_key: unknown key; the engine's own flags belong in [models.NAME.args]"),
        (
            "args.a = {b = 1}",
            "models.m.args.a: must be a string, a number, true, false, or a list of strings and numbers",
        ),
        (
            "args.a = 2020-01-01",
            "models.m.args.a = '2020-01-01': must not be a date or time; write it in quotes where a string is meant",
        ),
        (
            "restart.backoff_max_s = 0.5",
            "models.m.restart.backoff_max_s = 0.5: must be at least backoff_initial_s, which is 1",
        ),
        ("binary = ''", "models.m.binary = '': must be a path, and is empty or holds a NUL"),
        ("binary = '~bob/x'", "models.m.binary = '~bob/x': only '~/' is understood, not another user's home"),
        ('binary = "a/\\u001b[2J"', "models.m.start = 'x': must be 'always', 'on-demand' or 'manual'"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_why(tmp_path: Path, setting: str, expected: str) -> None:
    extra = "\nstart = 'x'" if "u001b" in setting else ""  # a control character is no problem by itself
    assert problems(tmp_path, f"[models.m]\n{MODEL}{setting}{extra}") == [expected]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[model.x]\n", "model: unknown section; did you mean 'models'?"),
        (
            "x = 1\n",
            "x = 1: unknown section; there are 'daemon', 'gateway', 'weights', 'gpus', 'engines' and 'models'",
        ),
        (f"[models.m]\n{MODEL}gpus = -1", "models.m.gpus = -1: must be at least 0"),
        (f"[models.m]\n{MODEL}gpus = 'all'", "models.m.gpus = 'all': must be a number, or a list of UUIDs"),
        (f"[models.m]\n{MODEL}gpus = []", "models.m.gpus = []: is an empty list; for no GPU it is 0"),
        (f"[models.m]\n{MODEL}gpus = ['0']", "models.m.gpus = ['0']: '0' is no UUID, which begins with GPU-"),
        (f"[models.m]\n{MODEL}gpus = ['GPU-1', 'GPU-1']", "models.m.gpus = ['GPU-1', 'GPU-1']: names a GPU twice"),
        (f"[models.m]\n{MODEL}replicas = 'per-gpu'", "models.m.replicas = 'per-gpu': needs the number of GPUs"),
        (
            f"[models.m]\n{MODEL}gpus = ['GPU-1']\nreplicas = 'per-gpu'",
            "models.m.replicas = 'per-gpu': needs the number of GPUs of each replica",
        ),
        (f"[models.m]\n{MODEL}replicas = 'all'", "models.m.replicas = 'all': must be a number from 1 to 512"),
        (f"[models.m]\n{MODEL}placement.exclusive = true", "models.m.placement: is for a model that uses GPUs"),
        (
            f"[models.m]\n{MODEL}gpus = 1\nplacement.apart_from = ['mm']",
            "models.m.placement.apart_from[0] = 'mm': there is no such model; did you mean 'm'?",
        ),
        (
            f"[models.m]\n{MODEL}gpus = 1\nplacement.strategy = 'sprad'",
            "models.m.placement.strategy = 'sprad': must be 'spread' or 'pack'; did you mean 'spread'?",
        ),
        (f"[models.m]\n{MODEL}gpus = 1\nplacement.vram_bytes = -1", "models.m.placement.vram_bytes = -1: must be at"),
        ("[gpus]\ninterval_s = 0", "gpus.interval_s = 0: must be greater than 0"),
        ("[gpus]\nreserve = 0", "gpus.reserve = 0: unknown key; did you mean 'reserve_bytes'?"),
        ("models = 3\n", "models = 3: must be a table, not an integer"),
        ("[models]\nm = 3\n", "models.m = 3: must be a table, not an integer"),
        ("[models.m]\n", "models.m.engine: is required"),
        (
            '[engines.llama.cpp]\nbinary = "x"',
            'engines.llama: a name with a dot needs quotes: write [engines."llama.cpp"]',
        ),
        ("[engines.lama]\n", "engines.lama: unknown engine"),
        ("[engines.command]\n", "engines.command: engine 'command' has no binary of its own"),
        (
            '[engines."llama.cpp"]\npython = "x"',
            "engines.\"llama.cpp\".python = 'x': is for engines in Python; this one is a 'binary'",
        ),
        (
            '[engines.llama-cpp-python]\nbinary = "x"',
            "engines.llama-cpp-python.binary = 'x': is not for this engine, a Python package: set 'python'",
        ),
        ('[engines."llama.cpp"]\nmodel = "x"', "engines.\"llama.cpp\".model = 'x': unknown key; there are 'binary'"),
        (f"[models.m]\n{MODEL}[models.m.6]\n", "models.m.6: unknown key; if it is part of a name, the name needs"),
        ("[daemon]\nlog_level = 'inf'", "daemon.log_level = 'inf': must be one of debug, info, warning, error; did"),
        ("[daemon]\nmetrics_listen = '0.0.0.0:1'", "daemon.metrics_listen = '0.0.0.0:1': must be a loopback address"),
        ("[daemon]\nmetrics_listen = '127.0.0.1'", "daemon.metrics_listen = '127.0.0.1': must be HOST:PORT"),
        ("[daemon]\nmetrics_listen = '[::1]:65536'", "daemon.metrics_listen = '[::1]:65536': must be HOST:PORT"),
        ("[daemon.journal]\nsegment_bytes = 1", "daemon.journal.segment_bytes = 1: must be at least 65536"),
    ],
)
def test_sections(tmp_path: Path, text: str, expected: str) -> None:
    [found] = problems(tmp_path, text)
    assert found.startswith(expected)


def test_everything_wrong_is_reported_at_once_and_only_once(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        """
        [daemon]
        metrics_listen = "10.0.0.1:9310"
        log_level = "loud"
        [models.a]
        engine = "llama.cpp"
        replicas = "two"
        wieghts = "m.gguf"
        [models.b]
        engine = "command"
        command = ["x", 1]
        gpus = -2
        env = {A = 1, "B C" = "x"}
        aliases = ["a"]
        [models.c]
        engine = "vlm"
        """,
    )
    paths = [re.split(" = |: ", line)[0] for line in found]
    assert sorted(paths) == sorted(
        [
            "daemon.log_level",
            "models.b.gpus",
            "models.a.replicas",
            "models.a.wieghts",
            "models.a.weights",
            "models.b.command[1]",
            "models.b.env.A",
            'models.b.env."B C"',
            "models.b.aliases[0]",
            "models.c.engine",
            "daemon.metrics_listen",
        ]
    )


def test_what_an_engine_cannot_be_run_with_comes_from_its_adapter(tmp_path: Path) -> None:
    found = problems(tmp_path, f"[models.m]\n{MODEL}args.port = 80\nargs.api_key = 's3cret'\nenv.TMPDIR = '/s3cret'\n")
    assert {re.split(" = |: ", line)[0] for line in found} == {
        "models.m.args.port",
        "models.m.args.api_key",
        "models.m.env.TMPDIR",
    }
    assert "s3cret" not in "\n".join(found)


@pytest.mark.parametrize("name", ["qwen3:8b", "org/model", "a", "A.b_c+d@e-f", "x" * 128, "7b"])
def test_names_that_clients_send(tmp_path: Path, name: str) -> None:
    assert list(read(tmp_path, f'[models."{name}"]\n{MODEL}').declaration.models) == [name]


@pytest.mark.parametrize("name", ["", "a b", "-a", "a/", "/a", "a#1", "ä", "x" * 129, "a\\n"])
def test_names_that_nobody_could_ask_for(tmp_path: Path, name: str) -> None:
    [found] = problems(tmp_path, f'[models."{name}"]\n{MODEL}')
    assert ": a model's name is 1 to 128 of the letters" in found


def test_a_name_must_also_do_as_the_name_of_a_directory(tmp_path: Path) -> None:
    name = "a" + ":" * 126 + "b"
    [found] = problems(tmp_path, f'[models."{name}"]\n{MODEL}')
    assert found.endswith("is 140 bytes too long for the name of a directory, in which each of : / + @ takes three")


def test_no_name_may_mean_two_things(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        f"""
        [models.a]
        {MODEL.splitlines()[0]}
        weights = "m.gguf"
        aliases = ["a", "x", "x", "b", "c/1"]
        [models."a/0"]
        engine = "llama.cpp"
        weights = "m.gguf"
        [models.b]
        engine = "llama.cpp"
        weights = "m.gguf"
        aliases = ["x", "c", "d/0"]
        """,
    )
    assert found == [
        "models.\"a/0\": reads as replica 0 of 'a'; give one of them another name",
        "models.a.aliases[0] = 'a': is the model's own name",
        "models.a.aliases[2] = 'x': is there twice",
        "models.a.aliases[3] = 'b': is taken by model 'b'",
        "models.a.aliases[4] = 'c/1': reads as replica 1 of 'c'; give one of them another name",
        "models.b.aliases[0] = 'x': is taken by model 'a'",
    ]


def test_gpus_are_a_number_or_a_list_and_per_gpu_is_a_word(tmp_path: Path) -> None:
    text = f"""
        [models.a]
        {MODEL.strip().splitlines()[0]}
        {MODEL.strip().splitlines()[1]}
        gpus = 2
        replicas = "per-gpu"
        [models.b]
        {MODEL.strip().splitlines()[0]}
        {MODEL.strip().splitlines()[1]}
        gpus = ["GPU-1", "MIG-2"]
        placement.apart_from = ["a", "b"]
    """
    models = read(tmp_path, text).declaration.models
    assert (models["a"].gpus, models["a"].replicas) == (2, "per-gpu")
    assert (models["b"].gpus, models["b"].placement.apart_from) == (("GPU-1", "MIG-2"), ("a", "b"))
