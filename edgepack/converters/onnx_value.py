"""The name, dtype and sizes of one input or output of an ONNX model, and how they are shown."""

import shlex
from typing import Any

import numpy as np
import onnx
import onnx.helper
from surface import Refused

DTYPES = ("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
DTYPES = (*DTYPES, "float16", "float32", "float64")


def spec(value: onnx.ValueInfoProto, what: str) -> dict[str, Any]:
    return {"name": value.name, "dtype": dtype_of(value, what), "shape": axes(value)}


def dtype_of(value: onnx.ValueInfoProto, what: str) -> str:
    kind = value.type.WhichOneof("value") or "nothing known"
    dtype = ""
    if kind == "tensor_type":
        try:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)).name
        except KeyError:
            dtype = "a type that there isn't"
        if dtype in DTYPES:
            return dtype
        kind = f"tensor of {'strings' if dtype == 'object' else dtype}"
    article = "an" if kind[0] == "o" else "a"
    raise Refused(
        f"The {what} {value.name!r} is {article} {kind.removesuffix('_type')}: edgepack handles tensors of numbers "
        "(bool, integers of 8 to 64 bits, float16, float32, float64).",
        "Export the model without it (for scikit-learn: options={'zipmap': False}), or with float32 there.",
        "EP310",
    )


def axes(value: onnx.ValueInfoProto) -> list[int | str] | None:
    """Sizes; a name (or ``?``) where the size is open; None where even the rank is."""
    tensor = value.type.tensor_type
    if not tensor.HasField("shape"):
        return None
    return [d.dim_value if d.HasField("dim_value") else (d.dim_param or "?") for d in tensor.shape.dim]


def fixed(found: list[int | str] | None) -> bool:
    return found is not None and all(isinstance(axis, int) and axis > 0 for axis in found)


def set_shape(value: onnx.ValueInfoProto, sizes: list[int]) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    shape.SetInParent()
    for size in sizes:
        shape.dim.add().dim_value = size


def shown(found: list[int | str] | None) -> str:
    return "(no shape)" if found is None else "[" + ", ".join(map(str, found)) + "]"


def example(found: list[int | str] | None) -> str:
    """Sizes that somebody might mean: batch 1, pictures of 224, sequences of 128."""
    if found is None:
        return "1x3x224x224"
    usual = 224 if len(found) == 4 else 128
    guess = [1 if i == 0 else 3 if (i == 1 and len(found) == 4) else usual for i in range(len(found))]
    sizes = [axis if isinstance(axis, int) and axis > 0 else guess[i] for i, axis in enumerate(found)]
    return "x".join(map(str, sizes))


def quoted(text: str) -> str:
    """One word for a shell; bash's $'...' where a name holds characters that can't be typed."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = (c if c.isprintable() and c not in "\\'" else f"\\U{ord(c):08x}" for c in text)
    return "$'" + "".join(escaped) + "'"
