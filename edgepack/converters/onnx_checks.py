"""What an ONNX model must be before anything is made of it: a valid graph of known operators with whole weights."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx.checker
import onnx.helper
import onnx.numpy_helper
import onnx_file
from node_order import Cycle, sort_nodes
from onnx_walk import STANDARD, every_node, every_tensor, label, one_line
from surface import Refused

MOST = 1 << 29  # numbers in one tensor: 2 GiB of float32
MOST_AXES = 64
RUNNABLE = (*STANDARD, "ai.onnx.ml", "com.microsoft")  # domains that onnxruntime has kernels for
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "LSTM", "GRU", "RNN")


def put_in_order(model: onnx.ModelProto, name: str, notes: list[str]) -> None:
    try:
        if sort_nodes(model.graph):
            notes.append("The nodes weren't in the order in which they can run; they were sorted.")
    except Cycle as error:
        raise Refused(
            f"{name} is not a valid ONNX model: {error}.",
            "It was damaged, or written by a tool with a bug. Export the model again.",
            "EP303",
        ) from error


def check_nodes(model: onnx.ModelProto, name: str) -> None:
    """Refuse operators that nothing here can run, then let onnx's checker look at the rest."""
    known = {(function.domain, function.name) for function in model.functions}
    for node in every_node(model):
        if node.domain not in RUNNABLE and (node.domain, node.op_type) not in known:
            raise Refused(
                f"{name} uses the operator {node.op_type} of the domain {node.domain!r} (node {label(node)}): "
                "that is a custom operator, and no engine here knows it.",
                "Export the model with standard ONNX operators, or cut the graph before that node.",
                "EP308",
            )
    named = Counter(value.name for value in model.graph.output)
    twice = next((value for value, count in named.items() if count > 1), None)
    try:
        if twice is not None:
            raise onnx.checker.ValidationError(f"it has the output {twice!r} twice")
        check_form(model)
    except onnx.checker.ValidationError as error:
        raise Refused(
            f"{name} is not a valid ONNX model: {one_line(error)}.",
            "It was damaged, or written by a tool with a bug. Export the model again.",
            "EP303",
        ) from error


def check_sizes(model: onnx.ModelProto, name: str) -> None:
    """Refuse nodes that make more numbers than any device has: onnx's inference would write them down one by one."""
    constants = {key: tensor for key, tensor in every_tensor(model) if tensor.data_type == onnx.TensorProto.INT64}
    for node in every_node(model):
        place = {"ConstantOfShape": 0, "Expand": 1}.get(node.op_type)
        taken = constants.get(node.input[place]) if place is not None and len(node.input) > place else None
        if taken is None or onnx_file.outside(taken) or math.prod(taken.dims) > MOST_AXES:
            continue
        sizes = onnx.numpy_helper.to_array(taken).ravel().tolist()
        if math.prod(sizes) > MOST:
            raise Refused(
                f"{name}: the {node.op_type} node {label(node)} makes a tensor of the sizes {sizes}, more than a "
                "device's memory.",
                "The file is damaged, or made to do harm. Export the model again.",
                "EP305",
            )


def check_form(model: onnx.ModelProto) -> None:
    """onnx's checker, but for shapes of inputs and outputs: runtimes need none, and they are found out later."""
    shapeless = [v for v in (*model.graph.input, *model.graph.output) if v.type.HasField("tensor_type")]
    shapeless = [v for v in shapeless if not v.type.tensor_type.HasField("shape")]
    for value in shapeless:
        value.type.tensor_type.shape.SetInParent()
    try:
        onnx.checker.check_model(model)
    finally:
        for value in shapeless:
            value.type.tensor_type.ClearField("shape")


def check_weights(model: onnx.ModelProto, name: str) -> None:
    """Refuse NaN in any array, and infinities where they can only be broken weights (masks may hold -inf)."""
    weights = {taken for node in every_node(model) if node.op_type in WEIGHTED for taken in node.input}
    for tensor_name, tensor in every_tensor(model):
        nans = infinities = size = 0
        try:
            for block in numbers(tensor):
                size += block.size
                if block.dtype.kind == "f" and not np.isfinite(block).all():
                    nans += int(np.isnan(block).sum())
                    infinities += int(np.isinf(block).sum())
        except ValueError as error:
            raise Refused(
                f"{name}: the numbers of the tensor {tensor_name!r} don't fill its shape: {one_line(error)}.",
                "The file is damaged: copy or download it again.",
                "EP303",
            ) from error
        is_weight = tensor_name in weights
        for what, count in (("NaN", nans), ("infinite", infinities)):
            # A lone NaN is a constant that some exporters write on purpose, and never a weight.
            wrong = count and (is_weight or (what == "NaN" and size > 1))
            if wrong:
                raise Refused(
                    f"{name}: the tensor {tensor_name!r} has {count} {what} value{'s' if count > 1 else ''} "
                    f"of {size}. The training run diverged or the file is damaged.",
                    "Use an earlier checkpoint, and export it again.",
                    "EP306",
                )


def numbers(tensor: onnx.TensorProto) -> Iterator[np.ndarray]:
    """A tensor's numbers in blocks; nothing for a type that numpy doesn't have."""
    try:
        onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        return
    yield from onnx_file.blocks(tensor, Path.cwd())
