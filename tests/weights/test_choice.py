"""What is taken of a whole repository."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelsupd.core.events import FailureClass
from modelsupd.weights.base import Pin, WeightsError
from modelsupd.weights.choice import choose, preferred

SMALL = "config.json generation_config.json tokenizer.json tokenizer_config.json merges.txt vocab.json"

SHARDED = """
config.json model-00001-of-00002.safetensors model-00002-of-00002.safetensors model.safetensors.index.json
"""
OTHERS = """
pytorch_model-00001-of-00002.bin pytorch_model-00002-of-00002.bin pytorch_model.bin.index.json
consolidated.safetensors consolidated.safetensors.index.json tf_model.h5 flax_model.msgpack
flax_model.msgpack.index.json rust_model.ot onnx/model.onnx onnx/config.json original/consolidated.00.pth
original/params.json openvino/openvino_model.bin openvino/openvino_model.xml
coreml/m.mlpackage/Data/weights/weight.bin
"""


def taken(files: str, allow: tuple[str, ...] = (), ignore: tuple[str, ...] = ()) -> str:
    return " ".join(pin.path for pin in choose([Pin(path, 1) for path in files.split()], allow, ignore))


@pytest.mark.parametrize(
    ("there", "left_out"),
    [
        (f"{SMALL} model.safetensors LICENSE", ".gitattributes README.md figure.png a/b/photo.JPG"),
        (SHARDED, OTHERS),
        ("config.json consolidated.safetensors params.json tekken.json tokenizer.model.v3", ""),
        ("config.json pytorch_model.bin", "tf_model.h5 training_args.bin optimizer.pt rng_state_0.pth model.tflite"),
        ("original/consolidated.00.pth original/params.json config.json", ""),
        ("model.onnx config.json", ""),
        ("model.safetensors 1_Pooling/config.json 2_Dense/pytorch_model.bin", "pytorch_model.bin"),
        ("unet/model.safetensors vae/model.safetensors", "unet/model.fp16.safetensors vae/model.fp16.safetensors"),
        ("model-00001-of-00002.safetensors model-00002-of-00002.safetensors", "model.fp16.safetensors"),
        ("model.fp16.safetensors", ""),
        ("adapter_config.json adapter_model.safetensors", "adapter_model.bin"),
        (
            "modeling_x.py configuration_x.py chat_template.jinja model.safetensors",
            "runs/events.out.tfevents.1 a.ipynb",
        ),
        ("model.safetensors config.json", "model-q4.gguf model-q8.gguf"),
        ("model-00001-of-00002.gguf model-00002-of-00002.gguf mmproj-f16.gguf config.json", "README.md"),
        ("model.safetensors config.json", "checkpoint-500/model.safetensors checkpoint-500/optimizer.pt"),
        ("MODEL.SAFETENSORS", "pytorch_model.bin"),
    ],
)
def test_what_an_engine_loads_is_taken_and_each_thing_once(there: str, left_out: str) -> None:
    assert taken(f"{there} {left_out}") == " ".join(sorted(there.split()))


def test_patterns() -> None:
    files = "config.json model.safetensors onnx/model.onnx onnx/q4/model.onnx README.md"
    assert taken(files, allow=("onnx/", "*.json")) == "config.json onnx/model.onnx onnx/q4/model.onnx"
    assert taken(files, allow=("*",), ignore=("onnx/q4/*", "*.md")) == "config.json model.safetensors onnx/model.onnx"
    assert taken(files, ignore=("*.safetensors",)) == "config.json onnx/model.onnx onnx/q4/model.onnx"
    assert taken(files, allow=("[c]*",)) == "config.json"
    assert taken("a.gguf b.gguf", allow=("*.gguf",)) == "a.gguf b.gguf"
    assert taken("a.gguf b.gguf", ignore=("b*",)) == "a.gguf"


@pytest.mark.parametrize(
    ("files", "allow", "words"),
    [
        ("a.json", ("*.bin",), "no file matches 'allow' and 'ignore'"),
        ("README.md", (), "it holds nothing that an engine loads"),
        (
            " ".join(f"m-Q{number}.gguf" for number in range(8)) + " x-00001-of-00002.gguf x-00002-of-00002.gguf",
            (),
            "among m-Q0.gguf, m-Q1.gguf, m-Q2.gguf, m-Q3.gguf, m-Q4.gguf and 4 more: append the file's name",
        ),
    ],
)
def test_what_cannot_be_chosen(files: str, allow: tuple[str, ...], words: str) -> None:
    with pytest.raises(WeightsError) as caught:
        taken(files, allow)
    assert caught.value.kind is FailureClass.WEIGHTS_UNAVAILABLE
    assert str(caught.value).startswith("cannot choose ")
    assert words in str(caught.value)


_NAMES = st.sampled_from(
    ["config", "model", "model.fp16", "consolidated", "pytorch_model", "mmproj", "m-00001-of-00002"]
)
_SUFFIXES = st.sampled_from(
    [".json", ".safetensors", ".safetensors.index.json", ".bin", ".pth", ".gguf", ".onnx", ".md"]
)
_FOLDERS = st.sampled_from(["", "onnx/", "original/", "vae/", ".hidden/"])
_PATHS = st.lists(st.tuples(_FOLDERS, _NAMES, _SUFFIXES).map("".join), unique=True, max_size=14)


@given(paths=_PATHS)
def test_the_choice_is_a_part_of_what_is_there_and_choosing_again_changes_nothing(paths: list[str]) -> None:
    pins = [Pin(path, 1) for path in paths]
    kept = preferred(pins)
    assert set(kept) <= set(pins)
    assert preferred(kept) == kept
    weights = [path for path in paths if path.endswith((".safetensors", ".bin", ".pth", ".gguf"))]
    loadable = [path for path in weights if not path.startswith(".")]
    assert bool(loadable) <= any(pin.path in loadable for pin in kept)
