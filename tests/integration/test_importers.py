"""The importers with the real tools: onnx, onnxruntime and torch in their own environments."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack import converter
from edgepack.errors import ModelError, UsageError
from edgepack.importers.onnx import OnnxImporter
from edgepack.importers.torch import TorchImporter
from edgepack.types import Model, TensorSpec

OPTIONS: dict[str, Any] = {"weights": None, "python": None, "dtypes": {}, "pythonpath": []}
FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
RANDOM = np.random.default_rng(0)


def value(name: str, shape: Sequence[int | str | None] | None, dtype: int = FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def weights(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(RANDOM.random(shape, np.float32), name)


def make(
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    held: Sequence[TensorProto] = (),
    *,
    opset: int = 17,
    ir_version: int = 8,
) -> onnx.ModelProto:
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(held))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


def write(folder: Path, model: onnx.ModelProto) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


class Imported:
    """One import: the model, and the outputs of its source and of its ONNX form on the same samples."""

    def __init__(
        self,
        importer: Any,
        source: str,
        shapes: dict[str, tuple[int, ...]],
        folder: Path,
        kept: tuple[str, ...] = (),
        **options: Any,
    ):
        self.importer, self.source, self.options = importer, source, {**OPTIONS, **options}
        self.folder = folder / f"step{len(list(folder.glob('step*')))}"
        out = self._new("import")
        importer.to_onnx(source, shapes, self.options, out)
        facts = json.loads((out / "model.json").read_text())
        assert sorted(p.name for p in out.iterdir()) == ["model.json", "model.onnx", *kept]
        assert sorted(p.name for p in self.folder.iterdir()) == ["import"]
        self.onnx = onnx.load(out / "model.onnx")
        onnx.checker.check_model(self.onnx, full_check=True)
        self.model = Model(
            path=out / "model.onnx",
            digest="",
            opset=facts["opset"],
            inputs=tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in facts["inputs"]),
            outputs=tuple(TensorSpec(**{**spec, "shape": tuple(spec["shape"])}) for spec in facts["outputs"]),
            operators=tuple(facts["operators"]),
        )

    def _new(self, name: str) -> Path:
        made = self.folder / name
        made.mkdir(parents=True)
        return made

    def agrees(self, count: int = 2) -> Imported:
        """The source's own outputs are those of the ONNX form, sample by sample, in shape, dtype and value."""
        samples = self._new("samples")
        for i, spec in enumerate(self.model.inputs):
            array = np.random.default_rng(i).random((count, *spec.shape))
            np.save(samples / f"{i}.npy", (array * 2 if spec.dtype[0] in "iu" else array).astype(spec.dtype))
        reference, ran = self._new("reference"), self._new("onnx")
        self.importer.reference(self.source, self.model, self.options, samples, reference)
        request = {
            "files": [str(self.model.path)],
            "inputs": [spec.name for spec in self.model.inputs],
            "outputs": [spec.name for spec in self.model.outputs],
            "samples": str(samples),
            "threads": 1,
            "timed": 0,
        }
        converter.convert("run_onnxruntime", request, ran)
        assert len(list(reference.iterdir())) == len(self.model.outputs)
        for i, spec in enumerate(self.model.outputs):
            expected, found = np.load(reference / f"{i}.npy"), np.load(ran / f"{i}.npy")
            assert expected.shape == found.shape == (count, *spec.shape)
            assert expected.dtype == found.dtype == np.dtype(spec.dtype)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
        return self

    @property
    def inputs(self) -> dict[str, tuple[int, ...]]:
        return {spec.name: spec.shape for spec in self.model.inputs}

    @property
    def outputs(self) -> dict[str, tuple[int, ...]]:
        return {spec.name: spec.shape for spec in self.model.outputs}


def from_onnx(folder: Path, model: onnx.ModelProto, **shapes: tuple[int, ...]) -> Imported:
    return Imported(OnnxImporter(), str(write(folder, model)), shapes, folder)


def refused(folder: Path, model: onnx.ModelProto, **shapes: tuple[int, ...]) -> ModelError | UsageError:
    with pytest.raises((ModelError, UsageError)) as error:
        from_onnx(folder, model, **shapes)
    assert "Traceback" not in error.value.message and "\n" not in error.value.message
    assert error.value.hint
    return error.value


def convolution(opset: int = 17, shape: Sequence[int | str] = ("N", 3, "H", "W")) -> onnx.ModelProto:
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]), helper.make_node("Relu", ["c"], ["y"])]
    outputs = [value("y", ["N", 8, "H", "W"])]
    return make(nodes, [value("x", shape)], outputs, [weights("w", 8, 3, 3, 3)], opset=opset)


# ---- ONNX


def test_open_axes_are_fixed_from_the_command_line_through_to_the_outputs(tmp_path: Path) -> None:
    done = from_onnx(tmp_path, convolution(), x=(2, 3, 16, 12)).agrees()
    assert (done.inputs, done.outputs) == ({"x": (2, 3, 16, 12)}, {"y": (2, 8, 16, 12)})
    assert done.model.operators == ("Conv", "Relu")


def test_an_open_axis_without_a_size_names_every_such_input_and_the_flag_to_add(tmp_path: Path) -> None:
    nodes = [helper.make_node("Add", ["a b", "z"], ["y"])]
    model = make(nodes, [value("a b", ["N", 3, "H", "W"]), value("z", ["N", 3, "H", "W"])], [value("y", None)])
    error = refused(tmp_path, model)
    assert error.id == "EP305" and error.exit_code == 3
    assert "input 'a b' has dynamic axes [N, 3, H, W]" in error.message and "input 'z'" in error.message
    assert "--input 'a b=1x3x224x224' --input z=1x3x224x224" in error.hint


def test_the_flag_to_add_can_be_typed_for_any_name(tmp_path: Path) -> None:
    name = "it's\n\x1b[31m*/"
    error = refused(
        tmp_path, make([helper.make_node("Relu", [name], ["y"])], [value(name, ["\x1b"])], [value("y", None)])
    )
    assert (error.message + error.hint).isprintable()
    word = error.hint.partition("--input ")[2]
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True)
    assert done.stdout.decode() == f"{name}=1"


def test_an_unknown_input_name_is_a_usage_error_with_the_nearest_one(tmp_path: Path) -> None:
    error = refused(tmp_path, convolution(), X=(1, 3, 8, 8))
    assert isinstance(error, UsageError)
    assert "no input 'X'" in error.message and "x [N, 3, H, W]" in error.hint
    near = refused(tmp_path, make([helper.make_node("Relu", ["image"], ["y"])], [value("image", ["N"])], [value("y", ["N"])]), imgae=(1,))  # fmt: skip  # noqa: E501
    assert "Did you mean 'image'?" in near.message


@pytest.mark.parametrize(("shape", "text"), [((1, 3, 8), "3 axes"), ((1, 4, 8, 8), "fixes it to [N, 3, H, W]")])
def test_a_shape_that_does_not_fit_the_model_is_a_usage_error(
    tmp_path: Path, shape: tuple[int, ...], text: str
) -> None:
    error = refused(tmp_path, convolution(), x=shape)
    assert isinstance(error, UsageError)
    assert text in error.message


def test_a_dtype_that_is_not_the_models_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the model says float32"):
        Imported(
            OnnxImporter(), str(write(tmp_path, convolution())), {"x": (1, 3, 8, 8)}, tmp_path, dtypes={"x": "int8"}
        )


@pytest.mark.parametrize("opset", [7, 12])
def test_an_old_opset_is_lifted_to_17_and_computes_the_same(tmp_path: Path, opset: int) -> None:
    held = [weights(name, 8) for name in ("scale", "bias", "mean", "var")]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "scale", "bias", "mean", "var"], ["n"]),
        helper.make_node("Softmax", ["n"], ["s"], axis=1),  # means something else before opset 13
        helper.make_node("ReduceSum", ["s"], ["r"], axes=[3]),  # axes became an input
        helper.make_node("Squeeze", ["r"], ["y"], axes=[3]),
    ]
    held.append(weights("w", 8, 3, 3, 3))
    inputs = [value("x", ["N", 3, 8, 8]), *(value(t.name, t.dims) for t in held)]  # as old containers want it
    model = make(nodes, inputs, [value("y", ["N", 8, 6])], held, opset=opset, ir_version=3)
    done = from_onnx(tmp_path, model, x=(1, 3, 8, 8)).agrees()
    assert done.model.opset == 17
    assert done.inputs == {"x": (1, 3, 8, 8)}
    assert done.outputs == {"y": (1, 8, 6)}


def test_a_lift_that_changes_what_the_model_computes_is_not_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Hardmax of three axes in a branch: opset 13 changed its meaning, and the version converter leaves it as it is.
    branch = helper.make_graph([helper.make_node("Hardmax", ["x"], ["b"], axis=1)], "b", [], [value("b", [2, 3, 4])])
    choice = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    surface = [value("x", [2, 3, 4]), helper.make_tensor_value_info("c", TensorProto.BOOL, [])]
    model = make([choice], surface, [value("y", [2, 3, 4])], opset=11)
    done = from_onnx(tmp_path, model).agrees()
    assert done.model.opset == 11
    assert "stays at opset 11" in capsys.readouterr().err


@pytest.mark.parametrize("opset", [13, 18, 21, 26])
def test_a_new_opset_is_kept(tmp_path: Path, opset: int) -> None:
    model = convolution(opset)
    model.ir_version = 14  # what onnx 1.23 writes, and onnxruntime 1.31 refuses
    assert from_onnx(tmp_path, model, x=(1, 3, 8, 8)).agrees().model.opset == opset


@pytest.mark.parametrize("opset", [27, 28])
def test_a_newer_opset_with_unchanged_operators_is_taken_as_the_newest_known_one(tmp_path: Path, opset: int) -> None:
    assert from_onnx(tmp_path, convolution(opset), x=(1, 3, 8, 8)).agrees().model.opset == 26


def test_an_operator_that_only_takes_more_types_now_is_no_newer_operator(tmp_path: Path) -> None:
    model = make([helper.make_node("Celu", ["x"], ["y"], alpha=2.0)], [value("x", [2, 3])], [value("y", [2, 3])], opset=28)  # fmt: skip  # noqa: E501
    assert from_onnx(tmp_path, model).agrees().model.opset == 26


def test_an_old_opset_with_operators_that_never_changed_is_taken(tmp_path: Path) -> None:
    surface = [helper.make_tensor_value_info(name, TensorProto.BOOL, [2, 3]) for name in ("x", "y")]
    model = make([helper.make_node("Not", ["x"], ["y"])], surface[:1], surface[1:], opset=1)
    assert from_onnx(tmp_path, model).agrees().model.opset == 17


def test_an_operator_in_a_form_that_is_new_is_refused_by_name(tmp_path: Path) -> None:
    # Mod of floats without fmod: it was an error at opset 26.
    model = make([helper.make_node("Mod", ["x", "x"], ["y"])], [value("x", [2])], [value("y", [2])], opset=28)
    assert "Mod in a form that is new" in refused(tmp_path, model).message


def test_a_model_of_ml_operators_alone_needs_no_standard_opset(tmp_path: Path) -> None:
    node = helper.make_node("Binarizer", ["x"], ["y"], domain="ai.onnx.ml", threshold=0.5)
    model = make([node], [value("x", [2, 3])], [value("y", [2, 3])])
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    assert from_onnx(tmp_path, model).agrees().outputs == {"y": (2, 3)}


def test_an_input_that_holds_no_number_is_a_constant(tmp_path: Path) -> None:
    axes = helper.make_tensor_value_info("axes", TensorProto.INT64, [0])
    node = helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=1)
    model = make([node], [value("x", [2, 3]), axes], [value("y", [1, 1])])
    assert from_onnx(tmp_path, model).agrees().inputs == {"x": (2, 3)}


@pytest.mark.parametrize(("opset", "word"), [(6, "older"), (99, "newer")])
def test_an_opset_that_no_tool_knows_is_refused_with_the_range(tmp_path: Path, opset: int, word: str) -> None:
    error = refused(tmp_path, convolution(opset), x=(1, 3, 8, 8))
    assert error.id == "EP307"
    assert f"opset {opset}, which is {word}" in error.message and "7 to 26" in error.message


def test_external_data_ends_up_inside_the_one_file(tmp_path: Path) -> None:
    model = convolution()
    onnx.save(model, tmp_path / "model.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    done = Imported(OnnxImporter(), str(tmp_path / "model.onnx"), {"x": (1, 3, 8, 8)}, tmp_path).agrees()
    assert not done.onnx.graph.initializer[0].external_data
    assert done.onnx.graph.initializer[0].raw_data


HOSTILE = [
    'x");system("true");("',
    "line\nbreak",
    "*/",
    "int",
    "??/",
    "{{7*7}}",
    "</script>",
    "a.b",
    "ü\u202e\U0001f600",
    "x" * 5000,
]


@pytest.mark.parametrize("name", HOSTILE)
def test_any_tensor_name_survives_untouched(tmp_path: Path, name: str) -> None:
    nodes = [helper.make_node("Relu", [name], ["h"], name=name), helper.make_node("Neg", ["h"], [f"{name} out"])]
    model = make(nodes, [value(name, ["N", 4])], [value(f"{name} out", ["N", 4])], opset=11)
    done = from_onnx(tmp_path, model, **{name: (1, 4)}).agrees()
    assert (done.inputs, done.outputs) == ({name: (1, 4)}, {f"{name} out": (1, 4)})
    assert done.onnx.graph.node[0].name == name


@pytest.mark.parametrize(("bad", "word"), [(np.nan, "NaN"), (np.inf, "infinite")])
def test_broken_weights_are_refused_naming_the_tensor(tmp_path: Path, bad: float, word: str) -> None:
    model = convolution()
    array = numpy_helper.to_array(model.graph.initializer[0]).copy()
    array[0, 0, 0, :2] = bad
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(array, "w"))
    error = refused(tmp_path, model, x=(1, 3, 8, 8))
    assert error.id == "EP306"
    assert f"'w' has 2 {word} values of 216" in error.message


def test_a_mask_of_minus_infinity_is_no_broken_weight(tmp_path: Path) -> None:
    mask = numpy_helper.from_array(np.array([0, -np.inf, 0, -np.inf], np.float32), "mask")
    nodes = [helper.make_node("Add", ["x", "mask"], ["s"]), helper.make_node("Softmax", ["s"], ["y"])]
    from_onnx(tmp_path, make(nodes, [value("x", [1, 4])], [value("y", [1, 4])], [mask])).agrees()


def test_a_custom_operator_is_refused_naming_node_and_domain(tmp_path: Path) -> None:
    model = make([helper.make_node("Magic", ["x"], ["y"], name="spell", domain="my.own")], [value("x", [1])], [value("y", [1])])  # fmt: skip  # noqa: E501
    model.opset_import.append(helper.make_opsetid("my.own", 1))
    error = refused(tmp_path, model)
    assert error.id == "EP308"
    assert all(text in error.message for text in ("Magic", "'my.own'", "'spell'"))


def test_a_local_function_is_inlined(tmp_path: Path) -> None:
    function = helper.make_function(
        "my.own", "Twice", ["a"], ["b"], [helper.make_node("Add", ["a", "a"], ["b"])], [helper.make_opsetid("", 17)]
    )
    model = make([helper.make_node("Twice", ["x"], ["y"], domain="my.own")], [value("x", [2])], [value("y", [2])])
    model.opset_import.append(helper.make_opsetid("my.own", 1))
    model.functions.append(function)
    done = from_onnx(tmp_path, model).agrees()
    assert done.model.operators == ("Add",)


def test_onnxruntimes_own_operators_pass(tmp_path: Path) -> None:
    model = make([helper.make_node("Gelu", ["x"], ["y"], domain="com.microsoft")], [value("x", ["N", 4])], [value("y", None)])  # fmt: skip  # noqa: E501
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    done = from_onnx(tmp_path, model, x=(1, 4)).agrees()
    assert done.outputs == {"y": (1, 4)}
    assert done.model.operators == ("com.microsoft.Gelu",)


def test_a_size_that_only_running_tells_is_found_by_running(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Cast", ["s"], ["f"], to=FLOAT),
        helper.make_node("Mul", ["f", "half"], ["h"]),
        helper.make_node("Cast", ["h"], ["i"], to=INT64),
        helper.make_node("Expand", ["one", "i"], ["y"]),
        helper.make_node("Identity", ["x"], ["z"]),
    ]
    held = [
        numpy_helper.from_array(np.float32(0.5), "half"),
        numpy_helper.from_array(np.ones((1, 1), np.float32), "one"),
    ]
    model = make(nodes, [value("x", ["N", "M"])], [value("y", None), value("z", None)], held)
    assert from_onnx(tmp_path, model, x=(4, 6)).agrees().outputs == {"y": (2, 3), "z": (4, 6)}


def test_an_output_whose_size_depends_on_the_data_is_refused(tmp_path: Path) -> None:
    model = make([helper.make_node("NonZero", ["x"], ["y"])], [value("x", [4])], [value("y", [1, "N"], INT64)])
    error = refused(tmp_path, model)
    assert error.id == "EP305"
    assert "depends on the data" in error.message and "'y'" in error.message


def test_inputs_and_outputs_that_are_no_tensors_of_numbers_are_refused(tmp_path: Path) -> None:
    text = make([helper.make_node("Identity", ["x"], ["y"])], [value("x", [1], TensorProto.STRING)], [value("y", [1], TensorProto.STRING)])  # fmt: skip  # noqa: E501
    assert "strings" in refused(tmp_path, text).message
    sequence = helper.make_tensor_sequence_value_info("y", FLOAT, None)
    row = make([helper.make_node("SequenceConstruct", ["x"], ["y"])], [value("x", [1])], [sequence])
    assert "'y' is a sequence" in refused(tmp_path, row).message


def test_scalars_and_whole_numbers_pass(tmp_path: Path) -> None:
    nodes = [helper.make_node("Cast", ["n"], ["f"], to=FLOAT), helper.make_node("Mul", ["x", "f"], ["y"])]
    model = make(nodes, [value("x", ["N"]), value("n", [], INT64)], [value("y", ["N"])])
    done = from_onnx(tmp_path, model, x=(3,)).agrees()
    assert done.inputs == {"x": (3,), "n": ()}
    assert done.model.inputs[1].dtype == "int64"


def test_sizes_that_the_model_cannot_run_on_are_refused_not_believed(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    held = [numpy_helper.from_array(np.array([2, 3]), "s")]
    model = make(nodes, [value("x", ["N"])], [value("y", ["A", "B"])], held)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    nodes.append(helper.make_node("NonZero", ["y"], ["z"]))
    odd = make(nodes, [value("x", ["N"])], [value("z", None, INT64)], held)
    error = refused(tmp_path, odd, x=(7,))
    assert error.id == "EP305" and "can't run this model with the sizes given" in error.message


def test_a_graph_that_is_not_valid_is_refused(tmp_path: Path) -> None:
    model = make([helper.make_node("Relu", ["nowhere"], ["y"])], [value("x", [1])], [value("y", [1])])
    error = refused(tmp_path, model)
    assert error.id == "EP303" and "nowhere" in error.message


def test_nodes_in_no_order_are_sorted(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["a"], ["y"]), helper.make_node("Tanh", ["x"], ["a"])]
    from_onnx(tmp_path, make(nodes, [value("x", [1, 4])], [value("y", [1, 4])])).agrees()


def test_nodes_that_wait_for_each_other_are_named(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["x", "b"], ["a"], name="first"),
        helper.make_node("Relu", ["a"], ["b"], name="second"),
        helper.make_node("Relu", ["b"], ["y"]),
    ]
    error = refused(tmp_path, make(nodes, [value("x", [1, 4])], [value("y", [1, 4])]))
    assert error.id == "EP303"
    assert "cycle" in error.message and "'first'" in error.message and "'second'" in error.message


def test_a_damaged_name_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, convolution())
    path.write_bytes(path.read_bytes().replace(b"Relu", b"\xff\xfe\xfdu"))
    with pytest.raises(ModelError) as error:
        Imported(OnnxImporter(), str(path), {"x": (1, 3, 8, 8)}, tmp_path)
    assert error.value.id == "EP303" and "damaged" in error.value.message


def test_what_exporters_write_for_people_is_left_out(tmp_path: Path) -> None:
    model = convolution()
    model.doc_string = "/home/somebody/train.py"
    model.graph.node[0].doc_string = "/home/somebody/train.py"
    model.metadata_props.add(key="path", value="/home/somebody/train.py")
    model.graph.node[0].metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/somebody/train.py")
    done = from_onnx(tmp_path, model, x=(1, 3, 8, 8))
    assert b"somebody" not in done.model.path.read_bytes()


def test_importing_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    model = convolution(9)
    one, two = (from_onnx(tmp_path, model, x=(1, 3, 8, 8)) for _ in range(2))
    assert one.model.path.read_bytes() == two.model.path.read_bytes()


def test_edgepacks_own_process_stays_small_for_a_model_of_100_mb(tmp_path: Path) -> None:
    held = numpy_helper.from_array(np.ones((25 << 20,), np.float32), "w")
    path = write(
        tmp_path, make([helper.make_node("Add", ["x", "w"], ["y"])], [value("x", [1])], [value("y", None)], [held])
    )
    code = (
        "import sys; from pathlib import Path; from edgepack.importers.onnx import OnnxImporter\n"
        "out = Path(sys.argv[2]); out.mkdir(parents=True); options = {'weights': None, 'python': None}\n"
        "OnnxImporter().to_onnx(sys.argv[1], {}, options, out)\n"
        "sys.stdout.write(Path('/proc/self/status').read_text())\n"
    )
    argv = [sys.executable, "-c", code, str(path), str(tmp_path / "step" / "files")]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    # Not ru_maxrss: that one starts at what the parent had when it forked.
    [peak] = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("VmHWM")]
    assert int(peak) < 200 << 10  # KiB


# ---- PyTorch

NETS = """
import os
import torch
from torch import nn

class Two(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(7)
        self.c = nn.Conv2d(3, 8, 3, padding=1)
        self.l = nn.Linear(8, 5)
    def forward(self, x):
        y = self.l(torch.relu(self.c(x)).mean((2, 3)))
        return {"logits": y, "prob": y.softmax(-1)}

class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(3, 8, 3, padding=1)
        self.d = nn.Dropout(0.5)
    def forward(self, x, y):
        return self.d(self.c(x)).mean((2, 3)) * y, y

class Padded(nn.Module):
    def forward(self, x):
        return nn.functional.pad(x, (1, 2, 3, 0), "reflect")

class Turned(nn.Module):
    # the tracing exporter knows no affine_grid
    def __init__(self):
        super().__init__()
        self.d = nn.Dropout(0.5)
    def forward(self, x):
        theta = torch.tensor([[[0.9, 0.1, 0], [-0.1, 0.9, 0]]]) * (1 + x.mean())
        return self.d(nn.functional.grid_sample(x, nn.functional.affine_grid(theta, list(x.shape), False)))

class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.e = nn.Embedding(10, 4)
    def forward(self, ids, mask):
        return (self.e(ids) * mask.unsqueeze(-1).float()).sum(1)

class Branch(nn.Module):
    def forward(self, x):
        if bool(x.sum() > 0):
            x = x * 2
        return x + 1

class Counts(nn.Module):
    def __init__(self):
        super().__init__()
        self.calls = 0
    def forward(self, x):
        self.calls += 1
        if bool(x.max() > 5):
            raise ValueError("too bright")
        return x * self.calls

class Talks(nn.Module):
    def forward(self, x):
        return x, "hello"

class Evil:
    def __reduce__(self):
        return os.system, ("touch " + os.environ["CANARY"],)

def number(): return 3
def needs(size): return Two()
def breaks(): raise ValueError("no such configuration")
"""

MAKE = """
import sys
sys.path.insert(0, ".")
import numpy as np
import torch
from nets import *
picture = torch.rand(1, 3, 8, 8)
two, pair = Two().eval(), Pair().eval()
state = {k: v + 1 for k, v in two.state_dict().items()}
np.save("bias.npy", two.l.bias.detach().numpy())
torch.save(state, "state.pth")
torch.save(state, "legacy.pth", _use_new_zipfile_serialization=False)
torch.save({"epoch": 3, "state_dict": {"module." + k: v for k, v in state.items()}}, "wrapped.ckpt")
torch.save(pair.state_dict(), "other.pth")
torch.save(two, "module.pt")
torch.save({"a": Evil()}, "evil.pth")
from safetensors.torch import save_file
save_file(state, "state.safetensors")
torch.jit.save(torch.jit.script(pair), "scripted.pt")
torch.jit.save(torch.jit.trace(two, picture, strict=False), "dict.pt")
torch.jit.save(torch.jit.script(Branch()), "branch.pt")
torch.jit.save(torch.jit.script(Talks()), "talks.pt")
torch.export.save(torch.export.export(two, (picture,)), "two.pt2")
n = torch.export.Dim("n")
dynamic = {"x": {0: n}, "y": {0: n}}
examples = (torch.rand(2, 3, 8, 8), torch.rand(2, 1))
torch.export.save(torch.export.export(pair, examples, dynamic_shapes=dynamic), "open.pt2")
"""


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with code, and with what torch itself saved from it."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "nets.py").write_text(NETS)
    (folder / "make.py").write_text(MAKE)
    python = converter.environment("torch_to_onnx")
    environment = {**os.environ, "CANARY": str(folder / "canary")}
    subprocess.run([python, "make.py"], cwd=folder, check=True, capture_output=True, env=environment)
    return folder


@pytest.fixture
def user(nets: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(nets)
    return nets


def from_torch(source: str, folder: Path, shapes: dict[str, tuple[int, ...]], **options: Any) -> Imported:
    return Imported(TorchImporter(), source, shapes, folder, **options)


def torch_refuses(source: str, folder: Path, shapes: dict[str, tuple[int, ...]], **options: Any) -> ModelError:
    with pytest.raises(ModelError) as error:
        from_torch(source, folder, shapes, **options)
    assert "Traceback" not in error.value.message and "\n" not in error.value.message
    assert error.value.hint
    return error.value


PICTURE = {"x": (1, 3, 8, 8)}


@pytest.mark.parametrize("name", ["legacy.pth", "wrapped.ckpt", "state.safetensors", "state.pth"])
def test_a_factory_gets_its_weights_from_any_safe_file(user: Path, tmp_path: Path, name: str) -> None:
    done = from_torch("nets:Two", tmp_path, PICTURE, weights=user / name)
    assert (done.inputs, done.outputs) == (PICTURE, {"logits": (1, 5), "prob": (1, 5)})
    # The factory's own weights are another state dict's minus one.
    [bias] = [t for t in done.onnx.graph.initializer if list(t.dims) == [5]]
    np.testing.assert_allclose(numpy_helper.to_array(bias), np.load(user / "bias.npy") + 1)
    if name == "state.pth":
        done.agrees()


@pytest.mark.parametrize(("name", "exporter"), [("Pair", ""), ("Turned", "by torch.export, because")])
def test_exporting_is_checked_in_the_mode_that_the_model_is_used_in(
    user: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, exporter: str
) -> None:
    """The first exporter leaves what it was given in training mode, also where it fails: the next one then exported
    drop-out that drops."""
    shapes = {"x": (1, 3, 8, 8), "y": (1, 1)} if name == "Pair" else PICTURE
    from_torch(f"nets:{name}", tmp_path, shapes).agrees()
    said = capsys.readouterr().err
    assert exporter in said and "agree" not in said


def test_a_file_in_another_opset_than_was_asked_for_is_noticed(nets: Path, tmp_path: Path) -> None:
    """torch.onnx.export writes opset 18 where it can't go down to 17, and only logs that."""
    code = f"""
import sys
sys.path[:0] = [{str(converter.FOLDER)!r}, {str(nets)!r}]
from functools import partial
from pathlib import Path
import torch
import torch_to_onnx_exporting as exporting
from nets import Padded
module, path, given = Padded().eval(), Path("made.onnx"), (torch.rand(1, 3, 8, 8),)
one = exporting.Try("torch.export", 17, partial(exporting.export_program, module, given, ["x"], ["y"], path, 17))
two = exporting.Try("tracing", 17, partial(exporting.export_traced, module, given, ["x"], ["y"], path))
for tries in ([one], [one, two]):
    print(exporting.best_that_works(tries, path, given, [module(*given)])[0], exporting.opset_of(path))
"""
    python = converter.environment("torch_to_onnx")
    done = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    kept, better = done.stdout.strip().splitlines()
    assert kept.startswith("Exported by torch.export, the best of what was tried") and kept.endswith(" 18")
    assert better.startswith("Exported by tracing, because exporting failed by torch.export: it wrote opset 18, and 17")
    assert better.endswith(" 17")


def test_a_factory_installed_elsewhere_is_found_through_pythonpath(
    nets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    from_torch("nets:Pair", tmp_path, {"x": (1, 3, 8, 8), "y": (1, 1)}, pythonpath=[str(nets)]).agrees()


def test_a_factory_runs_under_the_users_own_interpreter(user: Path, tmp_path: Path) -> None:
    python = converter.environment("torch_to_onnx")
    from_torch("nets:Pair", tmp_path, {"x": (1, 3, 8, 8), "y": (1, 1)}, python=python).agrees()


def test_inputs_in_any_order_reach_the_right_parameters(user: Path, tmp_path: Path) -> None:
    done = from_torch("nets:Pair", tmp_path, {"y": (1, 1), "x": (1, 3, 8, 8)}).agrees()
    assert done.inputs == {"x": (1, 3, 8, 8), "y": (1, 1)}
    assert done.outputs == {"output_0": (1, 8), "output_1": (1, 1)}


def test_whole_number_inputs_take_their_dtype_from_the_command_line(user: Path, tmp_path: Path) -> None:
    dtypes = {"ids": "int64", "mask": "bool"}
    done = from_torch("nets:Words", tmp_path, {"ids": (1, 6), "mask": (1, 6)}, dtypes=dtypes).agrees()
    assert [spec.dtype for spec in done.model.inputs] == ["int64", "bool"]


def test_torchscript_keeps_weird_input_names(user: Path, tmp_path: Path) -> None:
    shapes = {"a b": (1, 3, 8, 8), 'q"\n*/int': (1, 1)}
    assert from_torch("scripted.pt", tmp_path, shapes).agrees().inputs == shapes


def test_torchscript_that_returns_a_dict_keeps_its_keys(user: Path, tmp_path: Path) -> None:
    assert from_torch("dict.pt", tmp_path, PICTURE).agrees().outputs == {"logits": (1, 5), "prob": (1, 5)}


def test_torchscript_with_a_branch_keeps_both_sides(user: Path, tmp_path: Path) -> None:
    assert "If" in from_torch("branch.pt", tmp_path, {"x": (2, 3)}).agrees().model.operators


def test_outputs_that_are_no_tensors_are_refused(user: Path, tmp_path: Path) -> None:
    error = torch_refuses("talks.pt", tmp_path, {"x": (2, 3)})
    assert error.id == "EP310" and "returns a str" in error.message


def test_a_pt2_archive_knows_its_inputs(user: Path, tmp_path: Path) -> None:
    done = from_torch("two.pt2", tmp_path, {}).agrees()
    assert done.inputs == {"x": (1, 3, 8, 8)}
    assert done.outputs == {"logits": (1, 5), "prob": (1, 5)}


def test_a_pt2_archive_with_an_open_axis_asks_for_it_and_takes_it(user: Path, tmp_path: Path) -> None:
    error = torch_refuses("open.pt2", tmp_path, {})
    assert error.id == "EP305" and "--input x=1x3x8x8 --input y=1x1" in error.hint
    done = from_torch("open.pt2", tmp_path, {"x": (4, 3, 8, 8), "y": (4, 1)}).agrees()
    assert done.inputs == {"x": (4, 3, 8, 8), "y": (4, 1)}
    assert done.outputs == {"output_0": (4, 8), "output_1": (4, 1)}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("nowhere:Two", "There is no module 'nowhere'"),
        ("nets:Three", "no 'Three'"),
        ("nets:number", "returned int, not a torch.nn.Module"),
        ("nets:needs", "missing 1 required positional argument"),
        ("nets:breaks", "no such configuration"),
    ],
)
def test_a_factory_that_does_not_work_says_why(user: Path, tmp_path: Path, source: str, text: str) -> None:
    error = torch_refuses(source, tmp_path, PICTURE)
    assert error.id == "EP314" and text in error.message


def test_weights_of_another_model_are_refused_naming_tensors(user: Path, tmp_path: Path) -> None:
    error = torch_refuses("nets:Two", tmp_path, PICTURE, weights=user / "other.pth")
    assert error.id == "EP314" and "lacks l.weight, l.bias" in error.message


def test_too_few_inputs_are_refused_with_what_forward_takes(user: Path, tmp_path: Path) -> None:
    error = torch_refuses("scripted.pt", tmp_path, PICTURE)
    assert error.id == "EP305" and "forward takes: x, y" in error.message


@pytest.mark.parametrize(("name", "culprit"), [("evil.pth", "posix.system"), ("module.pt", "nets.Two")])
def test_what_torch_saved_with_code_in_it_is_named_and_not_run(
    user: Path, tmp_path: Path, name: str, culprit: str
) -> None:
    error = torch_refuses(name, tmp_path, PICTURE)
    assert error.id == "EP309" and culprit in error.message
    assert culprit in torch_refuses("nets:Two", tmp_path, PICTURE, weights=user / name).message
    assert not (user / "canary").exists()


def test_the_child_itself_refuses_a_pickle_that_the_scan_would_have_missed(
    user: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgepack.importers.pickles.offending", lambda path: [])
    error = torch_refuses("nets:Two", tmp_path, PICTURE, weights=user / "evil.pth")
    assert error.id == "EP309" and "evil.pth" in error.message
    assert not (user / "canary").exists()


def test_the_process_that_exports_gives_the_same_files_as_one_for_each(user: Path, tmp_path: Path) -> None:
    alone = from_torch("nets:Counts", tmp_path, PICTURE)
    samples, reference, together, outputs = (alone._new(n) for n in ("samples", "reference", "together", "outputs"))
    np.save(samples / "0.npy", np.random.default_rng(0).random((3, *PICTURE["x"]), np.float32))
    alone.importer.reference(alone.source, alone.model, alone.options, samples, reference)
    run = (alone.importer.to_onnx_and_reference, alone.source, PICTURE, alone.options, samples, together, outputs)

    assert alone.importer.known_inputs(alone.source, PICTURE, alone.options) == alone.model.inputs
    assert run[0](*run[1:])
    for one, two in ((alone.model.path.parent, together), (reference, outputs)):
        assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in two.iterdir()}
    np.testing.assert_allclose(np.load(outputs / "0.npy")[1], np.load(samples / "0.npy")[1] * 2)  # the second call's


def test_a_source_that_fails_on_the_samples_is_exported_all_the_same(user: Path, tmp_path: Path) -> None:
    importer, folders = TorchImporter(), [tmp_path / name for name in ("samples", "out", "outputs")]
    for folder in folders:
        folder.mkdir()
    np.save(folders[0] / "0.npy", np.full((1, *PICTURE["x"]), 9, np.float32))
    assert not importer.to_onnx_and_reference("nets:Counts", PICTURE, OPTIONS, *folders)
    assert (folders[1] / "model.onnx").is_file()


def test_whoever_imports_torchs_archive_reader_gets_it_without_pickle() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(converter.FOLDER)!r});"
        "import torch_to_onnx_trust as t; t.distrust_pickles();"
        "assert t.ARCHIVES not in sys.modules; import importlib;"
        "assert importlib.import_module(t.ARCHIVES).pickle is t.NoPickle"
    )
    subprocess.run([converter.environment("torch_to_onnx"), "-c", code], check=True)
