"""What a source is, is told by its content; what would run code, or is damaged, is refused before it is loaded."""

from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path
from typing import Any

import pytest

from edgepack.errors import ModelError, UsageError
from edgepack.importers import keras_config, shards, tflite_file
from edgepack.importers.mxnet import MXNetImporter
from edgepack.importers.sniff import Kind, kind_of
from edgepack.importers.tensorflow import TensorFlowImporter
from edgepack.importers.tflite import TFLiteImporter
from edgepack.plan import choose_variants, find_importer
from edgepack.types import Precision
from tests.conftest import ROOT

DATA = ROOT / "tests" / "data"
OPTIONS: dict[str, Any] = {"weights": None, "python": None, "signature": None, "dtypes": {}, "pythonpath": []}
SYMBOL = {
    "nodes": [{"op": "null", "name": "data", "inputs": []}, {"op": "Custom", "name": "mine", "inputs": [[0, 0, 0]]}]
}
PARAMS = b"\x12\x01" + bytes(62)
CONTENT = {
    "tensorflow": {
        "keras": None,
        "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(64),
        "saved_model.pb": b"\x08\x01\x12\x90\x02\x0a\x07" + bytes(64),
    },
    "tflite": {"tflite": (DATA / "tiny.tflite").read_bytes()},
    "mxnet": {"symbol": json.dumps(SYMBOL).encode()},
}


def keras_file(path: Path, config: Any) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", config if isinstance(config, str) else json.dumps(config))
        archive.writestr("model.weights.h5", b"")
    return path


def layer(**entry: Any) -> dict[str, Any]:
    return {"class_name": "Functional", "config": {"layers": [{"module": "keras.layers", **entry}]}}


@pytest.mark.parametrize(("importer", "what"), [(name, what) for name, kinds in CONTENT.items() for what in kinds])
@pytest.mark.parametrize("ending", [".onnx", ".pt", ".bin", ""])
def test_an_importer_is_chosen_by_content_under_any_name(tmp_path: Path, importer: str, what: str, ending: str) -> None:
    path = tmp_path / f"model{ending}"
    content = CONTENT[importer][what]
    if content is None:
        keras_file(path, layer(class_name="Dense", config={}))
    else:
        path.write_bytes(content)
    assert find_importer(str(path)).name == importer


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\x0a\x0f\x0a\x04data\x12\x0bPlaceholder" + bytes(20), Kind.FROZEN_GRAPH),
        (b"\x0a\x90\x01\x08\x00\x10\xff" + bytes(99), Kind.PADDLE),
        (b"7767517\n3 3\nInput data 0 1 data\n", Kind.NCNN),
        (b'<?xml version="1.0"?>\n<net name="m" version="11">', Kind.OPENVINO),
        (b"RKNN" + bytes(60), Kind.RKNN),
        (b"GGUF\x03" + bytes(60), Kind.GGUF),
        (PARAMS, Kind.MXNET_PARAMS),
        (b"\x08\x08\x12\x07pytorch\x1a\x03" + bytes(60), Kind.PROTOBUF),
    ],
)
def test_a_format_without_an_importer_is_named(tmp_path: Path, content: bytes, kind: Kind) -> None:
    (tmp_path / "model.bin").write_bytes(content)
    assert kind_of(tmp_path / "model.bin") is kind


BAD_CONFIGS = {
    "Lambda": (layer(class_name="Lambda", config={"name": "twice", "function": {"class_name": "__lambda__"}}), "EP309"),
    "bytecode": (layer(class_name="Activation", config={"activation": {"class_name": "__lambda__"}}), "EP309"),
    "pickled torch": (layer(class_name="TorchModuleWrapper", config={"module": "abc"}), "EP309"),
    "foreign class": ({"class_name": "Model", "module": "os", "config": {}}, "EP309"),
    "hidden state": (layer(class_name="LSTM", config={"name": "memory", "stateful": True}), "EP310"),
    "no model": ([1, 2], "EP303"),
    "no JSON": ("{", "EP303"),
}


@pytest.mark.parametrize("what", BAD_CONFIGS)
def test_a_keras_file_that_holds_or_names_code_is_refused_before_anything_is_loaded(tmp_path: Path, what: str) -> None:
    config, expected = BAD_CONFIGS[what]
    with pytest.raises(ModelError) as refused:
        TensorFlowImporter().digest(str(keras_file(tmp_path / "m.keras", config)), OPTIONS)
    assert refused.value.id == expected
    assert refused.value.hint and "\n" not in refused.value.message
    if expected == "EP309" and "torch" not in what:
        assert "model.export('FOLDER')" in refused.value.hint


def test_a_configuration_nested_without_end_is_damage_and_no_crash() -> None:
    deep: Any = {"class_name": "Dense"}
    for _ in range(500):
        deep = {"class_name": "Wrapper", "config": deep}
    with pytest.raises(ModelError, match="nested"):
        keras_config.check(deep, "m.keras")


def test_a_saved_model_with_a_link_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12\x02\x0a\x00")
    (tmp_path / "variables").mkdir()
    (tmp_path / "variables" / "variables.index").symlink_to("/etc/passwd")
    with pytest.raises(ModelError, match="not a regular file"):
        TensorFlowImporter().digest(str(tmp_path), OPTIONS)


def test_the_signature_is_a_part_of_a_saved_models_digest(tmp_path: Path) -> None:
    (tmp_path / "saved_model.pb").write_bytes(b"\x08\x01\x12\x02\x0a\x00")
    importer = TensorFlowImporter()
    assert importer.digest(str(tmp_path), OPTIONS) != importer.digest(str(tmp_path), {**OPTIONS, "signature": "x"})


@pytest.mark.parametrize("option", ["weights", "python", "signature"])
def test_options_for_other_sources_are_refused(option: str) -> None:
    with pytest.raises(UsageError, match=f"--{option} is for"):
        TFLiteImporter().digest(str(DATA / "tiny.tflite"), {**OPTIONS, option: "x"})


def test_a_tflite_file_tells_its_surface_and_its_precision() -> None:
    floating, whole = (tflite_file.read(DATA / name) for name in ("tiny.tflite", "tiny_int8.tflite"))
    assert [(t.name, t.spec.dtype, t.shape) for t in floating.inputs] == [
        ("serving_default_image:0", "float32", (1, 16, 16, 3))
    ]
    assert floating.precision is Precision.FP32
    assert whole.precision is Precision.INT8
    assert whole.outputs[0].spec.dtype == "int8" and whole.outputs[0].zero_point == -128
    assert whole.outputs[0].scale == pytest.approx(1 / 256)
    assert not floating.custom and not floating.stateful


def test_a_mutated_tflite_file_is_read_or_refused_and_never_a_crash(tmp_path: Path) -> None:
    whole = (DATA / "tiny.tflite").read_bytes()
    chance = random.Random(1)
    path = tmp_path / "m.tflite"
    refused = 0
    for _ in range(500):
        mutant = bytearray(whole)
        for _ in range(chance.randint(1, 8)):
            mutant[chance.randrange(len(mutant))] = chance.randrange(256)
        path.write_bytes(mutant[: chance.choice([len(mutant), chance.randrange(16, len(mutant))])])
        try:
            tflite_file.read(path)
        except tflite_file.Damaged:
            refused += 1
    assert refused > 100


def test_a_quantized_source_has_int8_variants_only_and_needs_no_calibration() -> None:
    from edgepack.config import load_target

    source = str(DATA / "tiny_int8.tflite")
    assert TFLiteImporter().quantized(source) and not TFLiteImporter().quantized(str(DATA / "tiny.tflite"))
    kept, refused = choose_variants(load_target("rk3588"), (), (), has_data=False, quantized=True)
    assert {str(variant) for variant in kept} == {"onnxruntime-int8", "tflite-int8"}
    assert all("quantized already" in outcome.reason for outcome in refused)


def test_an_mxnet_symbol_with_an_operator_in_python_is_refused_with_its_node(tmp_path: Path) -> None:
    path = tmp_path / "m-symbol.json"
    path.write_text(json.dumps(SYMBOL))
    (tmp_path / "m-0000.params").write_bytes(PARAMS)
    with pytest.raises(ModelError, match="'mine'") as refused:
        MXNetImporter().digest(str(path), OPTIONS)
    assert refused.value.id == "EP308"


def test_the_last_epoch_beside_an_mxnet_symbol_is_taken_and_none_is_said(tmp_path: Path) -> None:
    path = tmp_path / "m-symbol.json"
    path.write_text('{"nodes": [{"op": "null", "name": "data", "inputs": []}]}')
    importer = MXNetImporter()
    with pytest.raises(ModelError, match=r"no \.params file"):
        importer.digest(str(path), OPTIONS)
    (tmp_path / "m-0001.params").write_bytes(PARAMS)
    first = importer.digest(str(path), OPTIONS)
    (tmp_path / "m-0002.params").write_bytes(PARAMS + b"2")
    assert importer.digest(str(path), OPTIONS) != first


def test_weights_may_be_a_folder_of_shards_and_a_name_that_leaves_it_is_refused(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError, match="several"):
        shards.files(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "b.safetensors", "v": "a.safetensors", "u": "b.safetensors"}}))
    assert [path.name for path in shards.files(tmp_path)] == ["a.safetensors", "b.safetensors"]
    index.write_text(json.dumps({"weight_map": {"w": "../b.safetensors"}}))
    with pytest.raises(ModelError, match="no plain"):
        shards.files(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert [path.name for path in shards.files(tmp_path)] == ["model.safetensors"]
