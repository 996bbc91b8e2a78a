"""What the ncnn engine decides without running anything."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edgepack import ncnn_export
from edgepack.engines import ncnn
from edgepack.errors import VariantError
from edgepack.types import Model, Precision, TensorSpec


def spec(*shape: int, dtype: str = "float32", name: str = "x") -> TensorSpec:
    return TensorSpec(name=name, dtype=dtype, shape=shape)


def model(*operators: str, path: Path = Path("model.onnx"), inputs: tuple[TensorSpec, ...] = ()) -> Model:
    return Model(path=path, digest="", opset=17, inputs=inputs, outputs=(), operators=operators)


def test_pnnxs_word_on_the_batch_axis_is_tried_first() -> None:
    layouts = ncnn_export.layouts((spec(1, 3, 8, 8), spec(2, 1, 16)), [0, 1])
    assert layouts[0] == ((3, 8, 8), (2, 16))
    assert ((3, 8, 8), (2, 1, 16)) in layouts
    assert ((1, 3, 8, 8), (2, 1, 16)) in layouts


def test_an_axis_longer_than_one_is_never_dropped() -> None:
    assert ncnn_export.layouts((spec(2, 3, 8, 8),), [0]) == [((2, 3, 8, 8),)]


def test_five_axes_fit_only_without_the_batch() -> None:
    assert ncnn_export.layouts((spec(1, 2, 3, 4, 5),), [0]) == [((2, 3, 4, 5),)]
    assert ncnn_export.layouts((spec(2, 2, 3, 4, 5),), [0]) == []


def test_a_tensor_without_axes_is_one_number() -> None:
    assert ncnn_export.layouts((spec(),), [None]) == [((1,),)]


@pytest.mark.parametrize(
    ("lines", "dtype"),
    [
        (["Input in0 0 1 in0", "Embed e 1 1 in0 1 0=4"], "int32"),
        (["Input in0 0 1 in0", "Split s 1 2 in0 a b", "Relu r 1 1 a c", "Embed e 1 1 b d"], "int32"),
        (["Input in0 0 1 in0", "Convolution c 1 1 in0 1 0=4"], "float32"),
    ],
)
def test_only_an_embedding_reads_whole_numbers(lines: list[str], dtype: str) -> None:
    param = [line.split() for line in lines]
    assert ncnn_export.words(spec(1, 4, dtype="int64"), "in0", param) == dtype
    assert ncnn_export.words(spec(1, 4), "in0", param) == "float32"


def test_control_flow_is_named_before_any_work(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    node = helper.make_node("NonZero", ["x"], ["y"], name="find")
    graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])], [value])
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    found = ncnn.Ncnn().problems(model("NonZero", path=tmp_path / "model.onnx"), Precision.FP32)
    assert [(p.node, p.op) for p in found] == [("find", "NonZero")]
    assert found[0].hint


def test_nothing_is_wrong_with_an_ordinary_model() -> None:
    ordinary = model("Conv", "Relu", inputs=(spec(1, 3, 8, 8),))
    for precision in Precision:
        assert ncnn.Ncnn().problems(ordinary, precision) == []


def test_int8_needs_something_to_quantize() -> None:
    engine = ncnn.Ncnn()
    assert engine.problems(model("Relu"), Precision.INT8)
    assert not engine.problems(model("Relu"), Precision.FP16)


def test_smaller_precisions_start_from_fp32() -> None:
    engine = ncnn.Ncnn()
    assert engine.base(Precision.FP32) is None
    assert engine.base(Precision.FP16) == engine.base(Precision.INT8) == Precision.FP32
    assert "onnx_to_ncnn" not in engine.tools(Precision.INT8)


def parts(*layers: str) -> set[str]:
    return set(ncnn_export.parts([line.split() for line in layers]))


def test_what_a_model_needs_of_ncnn_includes_the_activations_that_are_fused() -> None:
    assert parts("Convolution c 1 1 a b 0=8 1=1 9=3 -23310=2,0.0,6.0") == {"Convolution", "Clip"}
    assert parts("InnerProduct p 1 1 a b 0=8 9=0", "ReLU r 1 1 b c") == {"InnerProduct", "ReLU"}


def test_a_reshape_that_names_a_batch_axis_needs_ncnn_with_batches() -> None:
    assert parts('Reshape r 1 1 a b 12=0 13=0 6="1,1,//(8,0n),0n"') == {"Reshape", "Reshape/batch"}
    assert parts("Reshape r 1 1 a b 0=-1") == {"Reshape"}


@pytest.mark.parametrize(
    ("layer", "useful"),
    [
        ("Convolution c 1 1 a b 0=8 1=3", True),
        ("Convolution c 1 1 a b 0=8 1=3 11=3 3=1 13=1", True),
        ("Convolution c 1 1 a b 0=8 1=3 3=2", False),
        ("Convolution c 1 1 a b 0=8 1=3 11=1", False),
        ("Convolution c 1 1 a b 0=8 1=5", False),
        ("ConvolutionDepthWise c 1 1 a b 0=8 1=3 6=72 7=8", False),
        ("ConvolutionDepthWise c 1 1 a b 0=8 1=3 6=288 7=2", True),
        ("Deconvolution c 1 1 a b 0=8 1=3", False),
    ],
)
def test_winograd_is_for_3x3_convolutions_of_stride_1_that_mix_channels(layer: str, useful: bool) -> None:
    assert ("Convolution/winograd" in parts(layer)) == useful


def test_a_param_file_with_another_beginning_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.param").write_text("nonsense")
    with pytest.raises(VariantError, match="cannot be loaded by ncnn"):
        ncnn_export.read_param(tmp_path / "x.param")
