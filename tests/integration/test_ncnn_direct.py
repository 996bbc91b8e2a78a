"""ncnn's files written node by node: every form computes what ONNX Runtime does.

All forms are parts of one model, so that they cost one run of ncnn; each is a test of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgepack import converter

onnxruntime = pytest.importorskip("onnxruntime")
MODULES = ("expand", "float_of_qdq", "ncnn_", "onnx_graph", "recurrence", "write_")
CASES: dict[str, Callable[[], Part]] = {}


def rng() -> np.random.Generator:
    return np.random.default_rng(5)


def real(*shape: int) -> np.ndarray:
    return rng().normal(size=shape).astype(np.float32)


@dataclass
class Part:
    """A few nodes, what they take, and constants: names are made unique when parts become one model."""

    nodes: list[onnx.NodeProto]
    inputs: dict[str, np.ndarray]
    held: dict[str, np.ndarray] = field(default_factory=dict)


def node(op: str, inputs: str, outputs: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(","), outputs.split(","), **attributes)


def case(sentence: str) -> Callable[[Callable[[], Part]], Callable[[], Part]]:
    def keep(part: Callable[[], Part]) -> Callable[[], Part]:
        CASES[sentence] = part
        return part

    return keep


def one(sentence: str, op: str, x: np.ndarray, /, outputs: str = "y", at: Any = None, **held: Any) -> None:
    """A case of a single node whose first input is computed and whose others are constant."""
    arrays = {name: np.asarray(value) for name, value in held.items()}
    CASES[sentence] = lambda: Part([node(op, ",".join(["x", *arrays]), outputs, **(at or {}))], {"x": x}, arrays)


whole = np.array([[7, -7, 6], [-5, 9, -9]], np.int64)
one("integers are divided towards zero", "Div", whole, b=np.int64([3, -3, 3]))
one("the remainder of integers has the divisor's sign", "Mod", whole, b=np.int64([4, -4, 4]))
one("a remainder like C's has the dividend's sign", "Mod", whole, at={"fmod": 1}, b=np.int64([4, -4, 4]))
one("a negative number has whole powers", "Pow", real(3, 4), e=np.float32(3.0))
one("an axis is padded that isn't the grid's", "Pad", real(1, 3, 4, 5), p=np.int64([0, 2, 0, 0, 0, 1, 0, 0]))
one("edges are reflected", "Pad", real(1, 2, 5, 5), at={"mode": "reflect"}, p=np.int64([0, 0, 2, 1, 0, 0, 1, 3]))
one("every second entry is taken backwards", "Slice", real(2, 3, 9), s=np.int64([8]), e=np.int64([-100]), a=[2], t=[-2])
one("six axes change places", "Transpose", real(1, 2, 3, 2, 4, 3), at={"perm": [0, 1, 3, 5, 2, 4]})
one("axes far apart are reduced", "ReduceMax", real(2, 3, 4, 5), a=np.int64([0, 2]))
one("the log of a sum of exponentials doesn't overflow", "ReduceLogSumExp", real(3, 4) * 50 + 90, a=np.int64([1]))
one("of equal numbers the first is the largest", "ArgMax", np.float32([[1, 3, 3], [2, 2, 0]]), at={"axis": 1})
one("the smallest number is found", "ArgMin", real(2, 4, 3), at={"axis": 1, "keepdims": 0})
one("any axis can be a softmax's", "Softmax", real(2, 3, 4, 2), at={"axis": 1})
one("a running sum goes backwards, without itself", "CumSum", real(2, 5), at={"reverse": 1, "exclusive": 1}, a=1)
one("the best three come with their places", "TopK", real(2, 7), outputs="y,z", k=np.int64([3]))
one(
    "a batch is convolved",
    "Conv",
    real(2, 3, 6, 5),
    at={"strides": [2, 1], "dilations": [1, 2]},
    w=real(4, 3, 3, 2),
)
one("channels are convolved in groups", "Conv", real(1, 4, 6, 5), at={"group": 2}, w=real(6, 2, 3, 3), b=real(6))
one("a volume is convolved", "Conv", real(1, 2, 4, 5, 6), at={"pads": [1, 0, 1, 1, 0, 1]}, w=real(3, 2, 3, 2, 3))
one("a sequence is convolved", "Conv", real(1, 3, 9), at={"auto_pad": "SAME_UPPER"}, w=real(4, 3, 4))
one(
    "a transposed convolution is cut unevenly",
    "ConvTranspose",
    real(1, 3, 4, 5),
    at={"strides": [2, 3], "pads": [0, 1, 1, 0], "output_padding": [1, 2]},
    w=real(3, 4, 2, 3),
)
one("windows can be dilated", "MaxPool", real(1, 2, 7, 8), at={"kernel_shape": [2, 3], "dilations": [2, 2]})
one(
    "an average leaves the padding out",
    "AveragePool",
    real(2, 3, 7, 8),
    at={"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1], "ceil_mode": 1},
)
one(
    "a cubic resize with other weights is a product",
    "Resize",
    real(1, 2, 5, 6),
    at={"mode": "cubic", "cubic_coeff_a": -0.5},
    r=np.float32([]),
    s=np.float32([1, 1, 1.6, 2]),
)
one("rows are looked up in a table", "Gather", real(2, 6, 3), at={"axis": 1}, i=np.int64([[0, 5], [3, -2]]))
one("a tensor is repeated", "Tile", real(2, 1, 3), r=np.int64([2, 3, 2]))
one("blocks of the grid become channels", "SpaceToDepth", real(2, 3, 4, 6), at={"blocksize": 2})
one("channels become blocks of the grid", "DepthToSpace", real(1, 8, 2, 3), at={"blocksize": 2, "mode": "CRD"})
one(
    "channels are normalised in groups",
    "GroupNormalization",
    real(2, 6, 3, 2),
    at={"num_groups": 3},
    s=real(6),
    b=real(6),
)
one("every instance is normalised", "InstanceNormalization", real(2, 3, 4, 5), s=real(3), b=real(3))
one("rows are normalised", "LayerNormalization", real(2, 3, 4), at={"axis": 1}, s=real(3, 4), b=real(3, 4))
one("a product is the same for every entry of the batch", "MatMul", real(2, 3, 4, 5), b=real(5, 2))
one(
    "a five-fold axis is summed by letters",
    "Einsum",
    real(2, 3, 4),
    at={"equation": "bij,bkj->bki"},
    b=real(2, 5, 4),
)
one("rows of the data are replaced", "ScatterND", real(6, 3), i=np.int64([[4], [1]]), u=real(2, 3))


@case("what a comparison says is chosen by")
def chosen() -> Part:
    nodes = [node("GreaterOrEqual", "a,b", "c"), node("Not", "c", "d"), node("Where", "d,a,b")]
    return Part(nodes, {"a": np.float32([1, 2, -3]), "b": np.float32([[1], [-4]])})


@case("both operands are broadcast")
def both() -> Part:
    return Part([node("Sub", "a,b")], {"a": real(3, 1, 5), "b": real(2, 1, 4, 1)})


@case("places that are computed pick rows")
def picked() -> Part:
    return Part([node("Gather", "x,i", axis=0)], {"x": real(5, 3), "i": np.int64([[4, 0], [-1, 2]])})


@case("whole numbers pick rows of weights")
def words() -> Part:
    return Part([node("Gather", "t,i")], {"i": np.int64([[3, 1, 0]])}, {"t": real(6, 4)})


@case("a grid says where to sample")
def sampled() -> Part:
    grid = rng().uniform(-1.1, 1.1, (2, 3, 4, 2)).astype(np.float32)
    return Part([node("GridSample", "x,g", align_corners=1)], {"x": real(2, 3, 5, 6), "g": grid})


@case("products of batches that are broadcast")
def batches() -> Part:
    return Part([node("MatMul", "a,b")], {"a": real(1, 3, 4, 5), "b": real(2, 1, 5, 2)})


@case("a factor of each channel that is computed")
def factors() -> Part:
    return Part([node("Mul", "x,f")], {"x": real(1, 4, 3, 3), "f": real(1, 4, 1, 1)})


@case("weights of one number are written by their size")
def filled() -> Part:
    fill = node("ConstantOfShape", "s", "w", value=numpy_helper.from_array(np.float32([0.01])))
    return Part([fill, node("MatMul", "x,w")], {"x": real(1, 600)}, {"s": np.int64([600, 500])})


@case("a GELU that is written out is one layer")
def gelu() -> Part:
    nodes = [node("Div", "x,r", "a"), node("Erf", "a", "b"), node("Add", "b,o", "c")]
    nodes += [node("Mul", "x,c", "d"), node("Mul", "d,h")]
    return Part(nodes, {"x": real(3, 4)}, {"r": np.float32(2**0.5), "o": np.float32(1), "h": np.float32(0.5)})


@case("a layer normalisation that is written out is one layer")
def norm() -> Part:
    nodes = [node("ReduceMean", "x,a", "m"), node("Sub", "x,m", "d"), node("Pow", "d,t", "s")]
    nodes += [node("ReduceMean", "s,a", "v"), node("Add", "v,e", "w"), node("Sqrt", "w", "q"), node("Div", "d,q")]
    held = {"a": np.int64([-1]), "t": np.float32(2), "e": np.float32(1e-5)}
    return Part(nodes, {"x": real(2, 3, 5)}, held)


def recurrent(kind: str, gates: int, states: str, **attributes: Any) -> Part:
    """Two sequences of 20 steps with 3 numbers each; the states go in and out."""
    sides = 2 if attributes.get("direction") == "bidirectional" else 1
    held = {"w": real(sides, gates * 4, 3), "r": real(sides, gates * 4, 4) / 2, "b": real(sides, gates * 8)}
    inputs = {"x": real(20, 2, 3)} | {name: real(sides, 2, 4) for name in states}
    names = ["x", "w", "r", "b", "", *states]
    outputs = ["y", "z", "q"][: 1 + len(states)]
    return Part([node(kind, ",".join(names), ",".join(outputs), hidden_size=4, **attributes)], inputs, held)


CASES["an LSTM keeps its state"] = lambda: recurrent("LSTM", 4, "hc")
CASES["an LSTM reads both ways"] = lambda: recurrent("LSTM", 4, "hc", direction="bidirectional")
CASES["a GRU that resets late reads both ways"] = lambda: recurrent(
    "GRU", 3, "h", direction="bidirectional", linear_before_reset=1
)
CASES["a GRU that resets early is written out"] = lambda: recurrent("GRU", 3, "h", direction="reverse")
CASES["an RNN keeps its state"] = lambda: recurrent("RNN", 1, "h")


def merged() -> tuple[onnx.ModelProto, dict[str, np.ndarray], dict[str, list[str]]]:
    """All parts as one model, its inputs, and the outputs of each part."""
    nodes, inputs, held, outputs = [], {}, {}, {}
    for index, (sentence, make) in enumerate(CASES.items()):
        part = make()
        made = {name for one in part.nodes for name in one.output}
        read = {name for one in part.nodes for name in one.input}
        for one in part.nodes:
            one.input[:] = [name and f"p{index}.{name}" for name in one.input]
            one.output[:] = [name and f"p{index}.{name}" for name in one.output]
        nodes += part.nodes
        inputs |= {f"p{index}.{name}": array for name, array in part.inputs.items()}
        held |= {f"p{index}.{name}": array for name, array in part.held.items()}
        outputs[sentence] = [f"p{index}.{name}" for name in sorted(made - read)]
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in inputs.items()}
    graph = helper.make_graph(
        nodes,
        "parts",
        [helper.make_tensor_value_info(name, types[name], array.shape) for name, array in inputs.items()],
        [onnx.ValueInfoProto(name=name) for names in outputs.values() for name in names],
        [numpy_helper.from_array(array, name) for name, array in held.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    model = onnx.shape_inference.infer_shapes(model, data_prop=True)
    return model, inputs, outputs


@pytest.fixture(scope="module")
def direct() -> Iterator[Any]:
    sys.path.insert(0, str(converter.FOLDER))
    import ncnn_direct

    yield ncnn_direct
    sys.path.remove(str(converter.FOLDER))
    for name in [name for name in sys.modules if name.startswith(MODULES)]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def computed(direct: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[tuple[np.ndarray, np.ndarray]]]:
    """For every case what ONNX Runtime and ncnn give."""
    model, inputs, outputs = merged()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = dict(zip([o.name for o in session.get_outputs()], session.run(None, inputs), strict=True))
    written = direct.write(model)
    folder = tmp_path_factory.mktemp("direct")
    (folder / "m.param").write_text(written.param)
    (folder / "m.bin").write_bytes(written.weights)
    (folder / "in").mkdir()
    (folder / "out").mkdir()
    ids = f"in{list(inputs).index(next(n for n in inputs if n.endswith('.i') and inputs[n].shape == (1, 3)))}"
    for index, (array, shape) in enumerate(zip(inputs.values(), written.shapes, strict=True)):
        dtype = np.int32 if f"in{index}" == ids else np.float32
        np.save(folder / "in" / f"{index}.npy", array.astype(dtype).reshape(1, *shape))
    request = {
        "files": [str(folder / "m.param"), str(folder / "m.bin")],
        "inputs": [f"in{i}" for i in range(len(inputs))],
        "outputs": [f"out{i}" for i in range(len(wanted))],
        "samples": str(folder / "in"),
        "precision": "fp32",
    }
    converter.convert("run_ncnn", request, folder / "out")
    got = {name: np.load(folder / "out" / f"{i}.npy")[0] for i, name in enumerate(wanted)}
    return {
        s: [(wanted[name], got[name].reshape(wanted[name].shape)) for name in names] for s, names in outputs.items()
    }


@pytest.mark.parametrize("sentence", CASES)
def test_ncnn_computes_that(sentence: str, computed: dict[str, list[tuple[np.ndarray, np.ndarray]]]) -> None:
    assert computed[sentence]
    for wanted, got in computed[sentence]:
        np.testing.assert_allclose(got, wanted.astype(np.float32), rtol=2e-4, atol=2e-5)


def test_what_exporters_write_out_becomes_one_layer(direct: Any) -> None:
    written = direct.write(merged()[0])
    kinds = [line.split()[0] for line in written.param.splitlines()[2:]]
    assert kinds.count("GELU") == 1 and kinds.count("LayerNorm") == 2 and "Erf" not in kinds


def test_a_node_without_a_form_is_named(direct: Any) -> None:
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 2])
    graph = helper.make_graph(
        [helper.make_node("Det", ["x"], ["y"], name="d")], "g", [x], [onnx.ValueInfoProto(name="y")]
    )
    with pytest.raises(SystemExit, match=r"ncnn has no form of Det \('d'\): no layers of ncnn do that"):
        direct.write(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)]))


def test_a_mask_that_nothing_reads_is_left_out(direct: Any) -> None:
    x = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [2, 2])
    nodes = [helper.make_node("Dropout", ["x"], ["d", "mask"]), helper.make_node("Relu", ["d"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [onnx.ValueInfoProto(name="y")])
    written = direct.write(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))
    assert "ReLU" in written.param
