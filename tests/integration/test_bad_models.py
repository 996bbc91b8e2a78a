"""What is wrong with a model is said in a sentence, whatever it is; a sample of damaged files never gets further."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from edgepack import process
from tests.conftest import ROOT, missing
from tests.integration.test_importers import from_onnx, make, refused, value

SAMPLE = 20  # mutants of each kind


@pytest.fixture(scope="module", autouse=True)
def mutants() -> Iterator[Any]:
    """benchmarks/mutants.py, with converters that run in forks of servers meanwhile."""
    if not sys.platform.startswith("linux"):
        missing("the fork servers need Linux")
    patch = pytest.MonkeyPatch()
    patch.syspath_prepend(str(ROOT / "benchmarks"))
    patch.setattr(process, "run", process.run)  # put back afterwards
    import mutants

    mutants.forks.install()
    yield mutants
    for server in mutants.forks._servers.values():
        server.kill()
    patch.undo()
    for name in [n for n in sys.modules if n == "mutants" or n.startswith("corpus_tools")]:
        del sys.modules[name]


def relu(taken: str = "x", given: str = "y") -> NodeProto:
    return helper.make_node("Relu", [taken], [given])


def add(held: TensorProto, cast: bool = False) -> list[NodeProto]:
    if not cast:
        return [helper.make_node("Add", ["x", held.name], ["y"])]
    return [helper.make_node("Cast", [held.name], ["c"], to=1), helper.make_node("Add", ["x", "c"], ["y"])]


def array(name: str, values: Any, dtype: type = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


def raw(dims: list[int], data: bytes, dtype: int = TensorProto.FLOAT) -> TensorProto:
    return TensorProto(name="w", data_type=dtype, dims=dims, raw_data=data)


def odd(kind: Any) -> list[ValueInfoProto]:
    return [helper.make_value_info("x", kind)]


X, Y = [value("x", [1, 4])], [value("y", [1, 4])]
W = array("w", [1, 2, 3, 4])
ONE = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
ODD = {
    "sequence": helper.make_sequence_type_proto(ONE),
    "optional": helper.make_optional_type_proto(ONE),
    "map": helper.make_map_type_proto(TensorProto.STRING, ONE),
}
TYPES = {"FLOAT8E4M3FN": "float8_e4m3fn", "INT4": "int4", "BFLOAT16": "bfloat16", "STRING": "strings"}
BOMB = [
    helper.make_node("ConstantOfShape", ["s"], ["w"], name="bomb"),
    helper.make_node("ReduceMax", ["w"], ["m"], keepdims=0),
    helper.make_node("Add", ["x", "m"], ["y"]),
]
BAD: dict[str, tuple[onnx.ModelProto, str, str]] = {
    "two nodes that give one name": (make([relu(), relu()], X, Y), "EP303", "'y' has been used"),
    "two weights of one name": (make(add(W), X, Y, [W, W]), "EP303", "w initializer name is not unique"),
    "two inputs of one name": (make([relu()], X * 2, Y), "EP303", "'x' has been used as graph input"),
    "two outputs of one name": (make([relu()], X, Y * 2), "EP303", "the output 'y' twice"),
    "an output that is its input": (make([relu("x", "x")], X, X), "EP303", "cycle"),
    "an operator that there isn't": (make([helper.make_node("Frob", ["x"], ["y"])], X, Y), "EP303", "Frob"),
    "a type that there isn't": (make([relu()], [value("x", [4], 77)], Y), "EP310", "a type that there isn't"),
    "a shape of more numbers than there are": (make(add(W), X, Y, [raw([1 << 40], b"1234")]), "EP303", "'w'|: w"),
    "a negative size": (make(add(W), X, Y, [raw([-4], b"1234")]), "EP303", "Negative dimension"),
    "an input of the size of the sea": (
        make([relu()], [value("x", [1 << 40, 1 << 20])], [value("y", None)]), "EP305", "'x'.*a device's memory",
    ),
    "a constant of the size of the sea": (make(BOMB, X, Y, [array("s", [1 << 36], np.int64)]), "EP305", "'bomb'"),
    "no inputs": (make([helper.make_node("Neg", ["w"], ["y"])], [], [value("y", [4])], [W]), "EP303", "no inputs"),
    **{name: (make([relu()], odd(kind), Y), "EP310", f"'x' is an? {name}:") for name, kind in ODD.items()},
    **{
        name: (make([relu()], [value("x", [4], TensorProto.DataType.Value(name))], Y, opset=24), "EP310", text)
        for name, text in TYPES.items()
    },
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_is_wrong_is_said(tmp_path: Path, what: str) -> None:
    import re

    model, name, text = BAD[what]
    error = refused(tmp_path, model)
    assert error.id == name
    assert re.search(text, error.message), error.message


def test_branches_see_values_from_outside_and_what_they_miss_is_named(tmp_path: Path) -> None:
    value_of = helper.make_tensor_value_info

    def branch(op: str) -> onnx.GraphProto:
        node = helper.make_node(op, ["x", "outer"], ["r"])
        return helper.make_graph([node], op, [], [value_of("r", TensorProto.FLOAT, [1, 4])])

    nodes = [
        relu("x", "outer"),
        helper.make_node("ReduceMax", ["x"], ["m"], keepdims=0),
        helper.make_node("Greater", ["m", "half"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("Add"), else_branch=branch("Mul")),
    ]
    held = [array("half", 0.5)]
    from_onnx(tmp_path, make(nodes, X, Y, held)).agrees()
    error = refused(tmp_path, make(nodes[1:], X, Y, held))
    assert error.id == "EP303" and "'outer'" in error.message


@pytest.mark.parametrize(("dtype", "data"), [(TensorProto.FLOAT8E4M3FN, b"\1\2\3\4"), (TensorProto.INT4, b"\x21\x43")])
def test_weights_of_rare_types_pass(tmp_path: Path, dtype: int, data: bytes) -> None:
    held = raw([4], data, dtype)
    from_onnx(tmp_path, make(add(held, cast=True), X, Y, [held], opset=21)).agrees()


def test_a_sparse_weight_passes(tmp_path: Path) -> None:
    model = make(add(W), X, Y)
    sparse = model.graph.sparse_initializer.add(dims=[4])
    sparse.values.CopyFrom(array("w", [2, 3]))
    sparse.indices.CopyFrom(array("i", [1, 3], np.int64))
    from_onnx(tmp_path, model).agrees()


def test_names_of_64_kib_pass(tmp_path: Path) -> None:
    long = "n" * (64 << 10)
    node = helper.make_node("Tanh", ["a"], ["y"], name=long)
    from_onnx(tmp_path, make([relu(long, "a"), node], [value(long, [1, 4])], Y)).agrees()


@pytest.mark.parametrize("where", ["inside", "beside"])
def test_a_model_of_more_than_2_gib_is_refused_before_it_is_read(tmp_path: Path, where: str) -> None:
    model = make(add(W), X, Y, [raw([600 << 20], b"")])
    tensor = model.graph.initializer[0]
    if where == "beside":
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, text in (("location", "w.bin"), ("length", str(2400 << 20))):
            tensor.external_data.add(key=key, value=text)
        with (tmp_path / "w.bin").open("wb") as file:
            file.truncate(2400 << 20)  # takes no room
        error = refused(tmp_path, model)
    else:
        path = tmp_path / "model.onnx"
        from edgepack.converters.wire import head
        from edgepack.errors import ModelError
        from edgepack.importers.onnx import OnnxImporter

        length = 2400 << 20
        numbers = head(9, length)
        whole = head(5, len(numbers) + length) + numbers
        start = b"\x08\x08" + head(7, len(whole) + length) + whole
        path.write_bytes(start)
        with path.open("r+b") as file:
            file.truncate(len(start) + length)
        with pytest.raises(ModelError) as caught:
            OnnxImporter().digest(str(path), {"weights": None, "python": None})
        error = caught.value
    assert error.id == "EP313" and "2.3 GiB" in error.message


def test_a_sample_of_damaged_files_gets_a_sentence_each(tmp_path: Path, mutants: Any) -> None:
    results = mutants.run(tmp_path, SAMPLE)
    assert len(results) == 3 * SAMPLE
    assert not [item for item in results if item["status"] == "BAD"]
    for kind in ("onnx", "tflite", "param"):
        found = {item["status"] for item in results if item["kind"] == kind}
        assert {"taken", "refused"} <= found, "the damage is too weak or too strong"


def test_a_mutant_that_killed_the_process_is_found_by_the_next_run(tmp_path: Path, mutants: Any) -> None:
    (tmp_path / "mutants.jsonl").write_text('{"kind": "onnx", "number": 0, "status": "begun"}\n')
    patch = pytest.MonkeyPatch()
    patch.setattr(mutants, "whole_files", lambda _: {kind: [] for kind in ("onnx", "tflite", "param")})
    patch.setattr(mutants, "mutant", lambda *_: (Path(), b""))
    for name in ("checked", "run_param"):
        patch.setattr(mutants, name, lambda *_: {"status": "taken"})
    results = mutants.run(tmp_path, 1)
    patch.undo()
    assert [(item["kind"], item["status"]) for item in results] == [
        ("onnx", "BAD"), ("param", "taken"), ("tflite", "taken"),
    ]  # fmt: skip
