"""Inputs and outputs of an ONNX model: what they are, and their sizes from the command line."""

import difflib
import math

import onnx
from onnx_run import example_inputs, run_once
from onnx_value import axes, dtype_of, example, fixed, quoted, set_shape, shown
from surface import Refused, usage

IR_VERSION = 10  # the container's version; every tool here reads it, and newer ones add nothing that is used
MOST = 1 << 29  # numbers in one tensor


def drop_initializers_from_inputs(model: onnx.ModelProto) -> None:
    """Weights are no inputs. Containers below version 4 had to list them there."""
    model.ir_version = min(max(model.ir_version, 8), IR_VERSION)
    held = {tensor.name for tensor in model.graph.initializer}
    held |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    kept = [value for value in model.graph.input if value.name not in held]
    del model.graph.input[:]
    model.graph.input.extend(kept)


def fill_empty_inputs(model: onnx.ModelProto) -> None:
    """An input of no numbers (a list of no axes, a tensor of which only the type counts) has one value: a constant."""
    for value in list(model.graph.input):
        kind = value.type.tensor_type
        if len(kind.shape.dim) == 1 and kind.shape.dim[0].HasField("dim_value") and not kind.shape.dim[0].dim_value:
            empty = onnx.TensorProto(name=value.name, data_type=kind.elem_type, dims=[0], raw_data=b"")
            model.graph.initializer.append(empty)
            model.graph.input.remove(value)


def fix_inputs(model: onnx.ModelProto, shapes: dict[str, list[int]], dtypes: dict[str, str]) -> None:
    """Give every input the sizes from the command line, and refuse every input that still has an open axis."""
    inputs = {value.name: value for value in model.graph.input}
    for given in (*shapes, *dtypes):
        if given not in inputs:
            near = difflib.get_close_matches(given, inputs, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            listed = ", ".join(f"{name} {shown(axes(value))}" for name, value in inputs.items()) or "none"
            raise usage(f"The model has no input {given!r}.{guess}", f"Its inputs: {listed}.")
    open_inputs = []
    for name, value in inputs.items():
        dtype = dtype_of(value, "input")
        if dtypes.get(name, dtype) != dtype:
            raise usage(
                f"--input says that {name!r} is {dtypes[name]}, but the model says {dtype}.",
                f"Leave the dtype out: an ONNX model knows its own. Or write {name}=...:{dtype}.",
            )
        found = axes(value)
        sizes = shapes.get(name)
        if sizes is not None:
            check_shape(name, found, sizes)
            set_shape(value, sizes)
        elif found is None or any(not isinstance(axis, int) or axis < 1 for axis in found):
            open_inputs.append((name, found, dtype))
        else:
            sizes = found
        if sizes is not None and math.prod(sizes) > MOST:
            raise Refused(
                f"The input {name!r} has the sizes {shown(sizes)}: that is more than a device's memory.",
                "Give smaller ones with --input where the model leaves them open, or export it with smaller ones.",
                "EP305",
            )
    if open_inputs:
        empty = any(found and 0 in found for _, found, _ in open_inputs)
        said = "; ".join(
            f"input {name!r} has " + (f"dynamic axes {shown(found)}" if found is not None else "no shape at all")
            for name, found, _ in open_inputs
        )
        flags = " ".join("--input " + quoted(f"{name}={example(found)}") for name, found, _ in open_inputs)
        raise Refused(
            f"{said}{' (a size of 0 is taken as one to choose)' if empty else ''}: edgepack builds for fixed sizes.",
            f"Say which, for example: add {flags}",
            "EP305",
        )


def check_shape(name: str, found: list[int | str] | None, sizes: list[int]) -> None:
    if found is None:
        return
    given = "x".join(map(str, sizes))
    if len(found) != len(sizes):
        raise usage(
            f"--input gives {name!r} {len(sizes)} axes ({given}), but the model's has {len(found)}: {shown(found)}.",
            f"For example: --input {quoted(f'{name}={example(found)}')}",
        )
    for axis, size in zip(found, sizes, strict=True):
        if isinstance(axis, int) and axis > 0 and axis != size:
            raise usage(
                f"--input gives {name!r} the shape {given}, but the model fixes it to {shown(found)}.",
                "Only axes that the model leaves open can be chosen.",
            )


def resolve_outputs(model: onnx.ModelProto) -> None:
    """Every output gets fixed sizes: by inference, else from what onnxruntime really produces."""
    for value in model.graph.output:
        dtype_of(value, "output")
    if not model.graph.output or not model.graph.input:
        which, why = (
            ("inputs", "it always gives the same numbers") if model.graph.output else ("outputs", "it is useless")
        )
        raise Refused(f"The model has no {which}: {why}.", "Export a model that computes something.", "EP303")
    if all(fixed(axes(value)) for value in model.graph.output):
        return
    first = run_once(model, example_inputs(model, seed=None))
    second = run_once(model, example_inputs(model, seed=1))
    for value, one, two in zip(model.graph.output, first, second, strict=True):
        if one.shape != two.shape or 0 in one.shape:
            raise Refused(
                f"The size of the output {value.name!r} depends on the data ({shown(list(one.shape))} for zeros, "
                f"{shown(list(two.shape))} for noise): edgepack builds for fixed sizes.",
                "Cut the model before the operator that makes it (often NonMaxSuppression or NonZero), "
                "and do that part in your program.",
                "EP305",
            )
        set_shape(value, list(one.shape))
