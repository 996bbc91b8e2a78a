"""Small models made on the spot, with the shapes of real ones: convolution, activation, pooling, classifier."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HOSTILE = 'x");system("touch canary");("\n#include "/etc/passwd"\n*/ {{7*7}} ${x} ??/'


def tiny_classifier(
    path: Path,
    *,
    input_name: str = "image",
    output_name: str = "scores",
    batch: int | str = 1,
    opset: int = 17,
    poison: bool = False,
    side: int = 16,
) -> Path:
    """1x3x16x16 (or another `side`) -> 1x10: 2 convolutions, a pooling and a fully connected layer, seeded weights."""
    random = np.random.default_rng(7)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        values = (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
        if poison and name == "w2":
            values.flat[0] = np.nan
        return numpy_helper.from_array(values, name)

    nodes = [
        helper.make_node("Conv", [input_name, "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"], name="relu2"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], name="flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], [output_name], name="classifier", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, [batch, 3, side, side])],
        [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, [batch, 10])],
        [
            weights("w1", 8, 3, 3, 3), weights("b1", 8),
            weights("w2", 16, 8, 3, 3), weights("b2", 16),
            weights("w3", 10, 16), weights("b3", 10),
        ],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def tiny_reader(path: Path, *, width: int | str = "W") -> Path:
    """x 1x3x16xW -> y 1x8x(W/2): two convolutions and the mean over the height, as a reader of text lines begins."""
    random = np.random.default_rng(11)

    def weights(name: str, *shape: int) -> onnx.TensorProto:
        values = random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))
        return numpy_helper.from_array(values.astype(np.float32), name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv1", pads=[1, 1, 1, 1], strides=[2, 2]),
        helper.make_node("Relu", ["c1"], ["r1"], name="relu1"),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], name="conv2", pads=[1, 1, 1, 1]),
        helper.make_node("ReduceMean", ["c2"], ["y"], name="mean", axes=[2], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "reader",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, "L" if isinstance(width, str) else width // 2])],
        [weights("w1", 8, 3, 3, 3), weights("b1", 8), weights("w2", 8, 8, 3, 3), weights("b2", 8)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def samples(path: Path, *, input_name: str = "image", count: int = 40, seed: int = 3) -> Path:
    """An .npz of smooth random images for `tiny_classifier`: [count, 3, 16, 16] float32."""
    random = np.random.default_rng(seed)
    coarse = random.standard_normal((count, 3, 4, 4)).astype(np.float32)
    smooth = coarse.repeat(4, axis=2).repeat(4, axis=3) + 0.1 * random.standard_normal((count, 3, 16, 16))
    write_npz(path, {input_name: smooth.astype(np.float32)})
    return path


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """numpy.savez for any key."""
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as stream:
                np.lib.format.write_array(stream, array)


def typed(path: Path, *, batch: int = 1) -> Path:
    """Inputs and outputs of every kind and a state: a, scale (one value), n, m, flag, half, state -> y, states, ...

    y = (a * scale + n + m + flag + half) W + b, states = state / 2 + 1, next = m + 1, off = not flag and
    twice = half + half. a, n, m, flag and half are batch x 8.
    """
    random = np.random.default_rng(5)
    weights = [("w", random.standard_normal((4, 8))), ("b", random.standard_normal(4)), ("two", 2.0), ("one", 1.0)]
    nodes = [helper.make_node("Mul", ["a", "scale"], ["s0"])]
    for index, name in enumerate(("n", "m", "flag", "half")):
        nodes.append(helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Add", [f"s{index}", f"{name}_float"], [f"s{index + 1}"]))
    nodes += [
        helper.make_node("Gemm", ["s4", "w", "b"], ["y"], transB=1),
        helper.make_node("Div", ["state", "two"], ["halved"]),
        helper.make_node("Add", ["halved", "one"], ["states"]),
        helper.make_node("Add", ["m", "step"], ["next"]),
        helper.make_node("Not", ["flag"], ["off"]),
        helper.make_node("Add", ["half", "half"], ["twice"]),
    ]
    kinds = {"n": TensorProto.INT32, "m": TensorProto.INT64, "flag": TensorProto.BOOL, "half": TensorProto.FLOAT16}
    graph = helper.make_graph(
        nodes,
        "typed",
        [
            helper.make_tensor_value_info("a", TensorProto.FLOAT, [batch, 8]),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
            *(helper.make_tensor_value_info(name, kind, [batch, 8]) for name, kind in kinds.items()),
            helper.make_tensor_value_info("state", TensorProto.FLOAT, [2, batch, 4]),
        ],
        [
            helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, 4]),
            helper.make_tensor_value_info("states", TensorProto.FLOAT, [2, batch, 4]),
            helper.make_tensor_value_info("next", TensorProto.INT64, [batch, 8]),
            helper.make_tensor_value_info("off", TensorProto.BOOL, [batch, 8]),
            helper.make_tensor_value_info("twice", TensorProto.FLOAT16, [batch, 8]),
        ],
        [
            *(numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights),
            numpy_helper.from_array(np.asarray(1, np.int64), "step"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path
