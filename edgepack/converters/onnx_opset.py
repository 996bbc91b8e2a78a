"""The version of the standard operators: whether the tools know it, and lifting old ones."""

import numpy as np
import onnx
import onnx.defs
import onnx.helper
import onnx.shape_inference
import onnx.version_converter
from onnx_checks import check_form
from onnx_run import example_inputs, run_once
from onnx_walk import STANDARD, every_node, one_line
from surface import Refused

OLDEST = 7  # the version converter lifts from here
ENOUGH = 13  # per-channel quantization and axes-as-inputs begin here; newer than this is kept as it is
RESIZE_CHOOSES = 11  # how it counts and rounds
LIFTED = 17  # what every engine's converter reads
# Operators whose words changed with the types and attributes that they take since opset 26, and nothing else.
WIDENED = {"BitShift", "DequantizeLinear", "Mod", "QuantizeLinear", "Range", "SpaceToDepth"}
INTEGERS = {getattr(onnx.TensorProto, f"{sign}INT{bits}") for sign in ("", "U") for bits in (8, 16, 32, 64)}
NEWEST = 26  # onnxruntime 1.31.1 (checked by a test); opsets it doesn't know it runs by chance or not at all


def check_opset(model: onnx.ModelProto, name: str, notes: list[str]) -> int:
    """The version of the standard operators. Refuses what is missing, too old or too new, before the checker does.

    A newer model whose operators all mean what they meant at the newest known opset is stamped as that.
    """
    opset = max((entry.version for entry in model.opset_import if entry.domain in STANDARD), default=0)
    if not model.graph.node and not model.graph.output:
        raise Refused(
            f"{name} holds no graph: it is cut off or was never finished.", "Export the model again.", "EP303"
        )
    if opset == 0 and model.opset_import and not any(n.domain in STANDARD for n in every_node(model)):
        model.opset_import.append(onnx.helper.make_opsetid("", LIFTED))  # nothing asks for it, but tools do
        return LIFTED
    if opset == 0:
        raise Refused(
            f"{name} doesn't say which opset it uses: it is cut off or damaged.", "Export the model again.", "EP303"
        )
    newest = min(NEWEST, onnx.defs.onnx_opset_version())
    readable = newest < opset <= onnx.defs.onnx_opset_version()
    changed = changed_since(newest, model, opset) if readable else []
    if readable and not changed:
        stamp(model, newest)
        notes.append(f"The model says opset {opset}; its operators are the same at opset {newest}, and it is taken so.")
        return newest
    if opset < OLDEST and not model.functions and not changed_since(opset, model, LIFTED):
        for entry in model.opset_import:
            entry.version = LIFTED if entry.domain in STANDARD else entry.version
        return LIFTED
    if opset > newest or opset < OLDEST:
        relation = "newer" if opset > newest else "older"
        raise Refused(
            f"{name} uses opset {opset}, which is {relation} than what edgepack's tools know ({OLDEST} to {newest})"
            + (f": it has {', '.join(changed[:5])} in a form that is new." if changed else "."),
            f"Export the model again with opset {LIFTED} "
            f"(torch.onnx.export(..., opset_version={LIFTED}); tf2onnx --opset {LIFTED}).",
            "EP307",
        )
    return opset


def changed_since(known: int, model: onnx.ModelProto, opset: int) -> list[str]:
    """Standard operators of the model that are defined otherwise at `opset` than at `known`, sorted."""
    names = {node.op_type for node in every_node(model) if node.domain in STANDARD}
    changed = {name for name in names if definition(name, opset) is None or not same(name, known, opset)}
    widened = changed & WIDENED
    return sorted(changed - widened | (too_wide(widened, known, model) if widened else set()))


def definition(name: str, opset: int) -> onnx.defs.OpSchema | None:
    try:
        return onnx.defs.get_schema(name, opset, "")
    except onnx.defs.SchemaError:
        return None


def same(name: str, known: int, opset: int) -> bool:
    """Whether an operator means the same at both opsets: every word of its definition, types aside.

    Most newer versions only add types; what the known one doesn't take, the checker and onnxruntime then refuse.
    """
    before, after = definition(name, known), definition(name, opset)
    return before is not None and after is not None and meaning(before) == meaning(after)


def meaning(schema: onnx.defs.OpSchema) -> tuple:
    attributes = {
        key: (value.type, value.required, str(value.default_value), value.description)
        for key, value in schema.attributes.items()
    }
    surface = [(value.name, value.option, value.description) for value in (*schema.inputs, *schema.outputs)]
    return schema.doc, attributes, surface


def too_wide(names: set[str], known: int, model: onnx.ModelProto) -> set[str]:
    """Which of these operators the model uses with a type or an attribute that they don't have at opset `known`."""
    lowered = onnx.ModelProto()
    lowered.CopyFrom(model)
    stamp(lowered, known)
    try:  # inference knows which types an operator takes
        inferred = onnx.shape_inference.infer_shapes(lowered, check_type=True, strict_mode=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return names
    types = {value.name: value.type.tensor_type.elem_type for value in (*model.graph.input, *inferred.graph.value_info)}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    found = set()
    for node in every_node(model):
        if node.domain in STANDARD and node.op_type in names:
            schema = onnx.defs.get_schema(node.op_type, known, "")
            added = any(attribute.name not in schema.attributes for attribute in node.attribute)
            modulo = node.op_type == "Mod" and not any(a.name == "fmod" and a.i for a in node.attribute)
            if added or (modulo and types.get(node.input[0]) not in INTEGERS):
                found.add(node.op_type)
    return found


def stamp(model: onnx.ModelProto, opset: int) -> None:
    """Say that the standard operators are those of `opset`, where a newer one is said."""
    for entry in (*model.opset_import, *(entry for f in model.functions for entry in f.opset_import)):
        if entry.domain in STANDARD:
            entry.version = min(entry.version, opset)


def lift(model: onnx.ModelProto, opset: int, notes: list[str]) -> onnx.ModelProto:
    """The model at opset 17, or 13; as it is when the version converter fails or changes what it computes."""
    why = ""
    prepared = with_flat_hardmax(model)
    for wanted in (LIFTED, ENOUGH):
        try:
            lifted = onnx.version_converter.convert_version(prepared, wanted)
            if opset < RESIZE_CHOOSES:
                keep_resize(lifted)
            check_form(lifted)
            difference = compare(model, lifted)
        except Exception as error:  # the converter raises whatever its C++ adapters do
            why = why or one_line(error)
            continue
        if not difference:
            return lifted
        why = why or difference
    notes.append(f"The model stays at opset {opset}: lifting it to {LIFTED} failed ({why}).")
    return model


def with_flat_hardmax(model: onnx.ModelProto) -> onnx.ModelProto:
    """Before opset 13 Hardmax saw a matrix, which the version converter does for Softmax and forgets here."""
    if not any(node.op_type == "Hardmax" for node in model.graph.node):
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    nodes = list(changed.graph.node)
    del changed.graph.node[:]
    for node in nodes:
        if node.op_type == "Hardmax" and node.domain in STANDARD:
            taken, made = node.input[0], node.output[0]
            shape, flat, hard = (f"{made}.{what}" for what in ("shape", "flat", "hard"))
            axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
            changed.graph.node.extend(
                [
                    onnx.helper.make_node("Shape", [taken], [shape]),
                    onnx.helper.make_node("Flatten", [taken], [flat], axis=axis),
                    onnx.helper.make_node("Hardmax", [flat], [hard], axis=1),
                    onnx.helper.make_node("Reshape", [hard, shape], [made]),
                ]
            )
        else:
            changed.graph.node.append(node)
    return changed


def keep_resize(lifted: onnx.ModelProto) -> None:
    """Say what Upsample and Resize did before they let one choose; the version converter leaves the new defaults."""
    for node in every_node(lifted):
        if node.op_type == "Resize" and node.domain in STANDARD:
            kept = [a for a in node.attribute if a.name not in ("coordinate_transformation_mode", "nearest_mode")]
            kept.append(onnx.helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            kept.append(onnx.helper.make_attribute("nearest_mode", "floor"))
            del node.attribute[:]
            node.attribute.extend(kept)


def compare(model: onnx.ModelProto, lifted: onnx.ModelProto) -> str:
    """Run both on the same numbers; says what differs, or nothing."""
    feeds = example_inputs(model, seed=1)
    before, after = run_once(model, feeds), run_once(lifted, feeds)
    for value, one, two in zip(model.graph.output, before, after, strict=True):
        if one.shape != two.shape:
            return f"its output {value.name!r} changed its shape"
        # Lifting only renames and rearranges: anything above rounding is a wrong adapter.
        if not np.allclose(one, two, rtol=1e-3, atol=1e-3 * float(np.abs(one).max(initial=0) or 1), equal_nan=True):
            return f"its output {value.name!r} changed its values"
    return ""
