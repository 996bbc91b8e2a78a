"""Says what a file is from its content: names and endings are only hints, and often wrong.

Reads a few bytes (and a zip's list of members), never the weights, and unpickles nothing.
"""

from __future__ import annotations

import zipfile
from collections.abc import Collection
from enum import StrEnum
from pathlib import Path


class Kind(StrEnum):
    """What a file looks like."""

    EMPTY = "an empty file"
    PROTOBUF = "a protobuf message"
    TORCHSCRIPT = "a TorchScript archive"
    PT2 = "a torch.export archive (.pt2)"
    TORCH_ZIP = "a PyTorch pickle (torch.save)"
    PICKLE = "a Python pickle"
    TFLITE = "a TFLite model"
    ORT = "an ONNX Runtime model (.ort)"
    KERAS = "a Keras model (.keras)"
    HDF5 = "an HDF5 file (.h5)"
    SAVED_MODEL = "a TensorFlow SavedModel"
    FROZEN_GRAPH = "a frozen TensorFlow graph (.pb)"
    MXNET_SYMBOL = "an MXNet symbol (-symbol.json)"
    MXNET_PARAMS = "MXNet parameters (.params)"
    PADDLE = "a Paddle model (.pdmodel)"
    NCNN = "an ncnn model (.param)"
    OPENVINO = "an OpenVINO model (.xml)"
    RKNN = "an RKNN model (.rknn)"
    GGUF = "a GGUF file (llama.cpp)"
    SAFETENSORS = "a safetensors file"
    ZIP = "a zip archive"
    CUT_ZIP = "a zip archive that is cut off or damaged (PyTorch's files are zips, too)"
    TAR = "a tar archive"
    GZIP = "a gzip file"
    LFS = "a Git LFS pointer"
    HTML = "a web page"
    TEXT = "a text file"
    UNKNOWN = "no model format that edgepack knows"


# What an importer takes, whatever the file is called.
SUPPORTED = frozenset(
    {
        Kind.PROTOBUF,
        Kind.TORCHSCRIPT,
        Kind.PT2,
        Kind.KERAS,
        Kind.HDF5,
        Kind.SAVED_MODEL,
        Kind.TFLITE,
        Kind.MXNET_SYMBOL,
    }
)
FROM_ORIGINAL = "It is made for one engine: give the model that it was made from."
ADVICE = {
    Kind.TORCH_ZIP: "Give the model's code as package.module:factory and this file with --weights.",
    Kind.PICKLE: "Give the model's code as package.module:factory and the weights with --weights.",
    Kind.ORT: "Give the .onnx file that it was made from.",
    Kind.SAFETENSORS: "It holds weights without a model: give the model's code as package.module:factory "
    "and this file with --weights.",
    Kind.FROZEN_GRAPH: "Save it as a SavedModel (tf.saved_model.save), or convert it: "
    "`python -m tf2onnx.convert --graphdef FILE --inputs X:0 --outputs Y:0 --output model.onnx`.",
    Kind.MXNET_PARAMS: "It holds weights without a model: give the -symbol.json file beside it.",
    Kind.PADDLE: "Convert it first: `paddle2onnx --model_dir DIR --model_filename FILE --save_file model.onnx`.",
    Kind.NCNN: FROM_ORIGINAL,
    Kind.OPENVINO: FROM_ORIGINAL,
    Kind.RKNN: FROM_ORIGINAL,
    Kind.GGUF: "edgepack doesn't run language models of that kind.",
    Kind.ZIP: "Unpack it and give the model file inside.",
    Kind.CUT_ZIP: "Copy or download it again, and compare its size with the original's.",
    Kind.TAR: "Unpack it and give the model file inside.",
    Kind.GZIP: "Unpack it and give the model file inside.",
    Kind.LFS: "The repository was cloned without its large files: run `git lfs pull`.",
    Kind.HTML: "The download gave a page instead of the file (a login page?): download it again.",
}
STARTS = {
    b"version https://git-lfs": Kind.LFS,
    b"7767517\n": Kind.NCNN,
    b"RKNN": Kind.RKNN,
    b"GGUF": Kind.GGUF,
}
PICKLE_STARTS = tuple(b"\x80" + bytes([protocol]) for protocol in range(2, 6))
TEXT_PICKLE_STARTS = (
    b"(dp",
    b"(lp",
    b"ccopy_reg",
    b"c__builtin__",
    b"cbuiltins",
    b"cos\n",
    b"cposix\n",
    b"(i",
    b"csys\n",
)


MXNET_LIST = (0x112).to_bytes(8, "little")  # how a file of NDArrays begins


def meant_for(source: str, kinds: Collection[Kind], endings: Collection[str]) -> bool:
    """Whether an importer of `kinds` is the one for `source`: by content; by ending only where no importer knows it."""
    path = Path(source)
    if path.is_dir():
        return Kind.SAVED_MODEL in kinds and (path / "saved_model.pb").is_file()
    if not path.is_file():
        return False
    named = path.suffix.lower() in endings
    try:
        kind = kind_of(path)
    except OSError:
        return named
    return kind in kinds or (named and kind not in SUPPORTED)


def kind_of(path: Path) -> Kind:
    """What `path` (a readable regular file) looks like. Raises OSError when it can't be read."""
    with path.open("rb") as stream:
        head = stream.read(1024)
    if not head:
        return Kind.EMPTY
    if head.startswith(b"PK\x03\x04"):
        return _kind_of_zip(path)
    # torch's oldest format is a tar of pickles; its other legacy format a row of pickles.
    if head.startswith(PICKLE_STARTS) or head.startswith(TEXT_PICKLE_STARTS):
        return Kind.PICKLE
    if head[4:8] == b"TFL3":
        return Kind.TFLITE
    if head[4:8] == b"ORTM":
        return Kind.ORT
    if head.startswith(b"\x89HDF\r\n"):
        return Kind.HDF5
    if head.startswith(b"\x1f\x8b"):
        return Kind.GZIP
    if head[257:262] == b"ustar":
        return Kind.TAR
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return Kind.SAFETENSORS
    if head.startswith(MXNET_LIST):
        return Kind.MXNET_PARAMS
    for start, kind in STARTS.items():
        if head.startswith(start):
            return kind
    if head.lstrip().startswith((b"<net ", b"<?xml")) and b"<net " in head:
        return Kind.OPENVINO
    if head.lstrip()[:1] == b"{" and b'"nodes"' in head and b'"op"' in head:
        return Kind.MXNET_SYMBOL
    if head.lstrip()[:9].lower() in (b"<!doctype", b"<html>", b"<html lan", b"<?xml ver"):
        return Kind.HTML
    if len(head) > 1 and _is_text(head):
        return Kind.TEXT
    if head[0] == 0x0A:
        return _inside(head, 1)
    if head.startswith(b"\x08\x01\x12") and _inside(head, 3) is Kind.FROZEN_GRAPH:
        return Kind.SAVED_MODEL
    # A ModelProto starts with ir_version (varint, field 1) in practice, and with one of its fields by definition.
    return Kind.PROTOBUF if head[0] in (0x08, 0x12, 0x1A, 0x22, 0x28, 0x32, 0x3A, 0x42) else Kind.UNKNOWN


def _inside(head: bytes, place: int) -> Kind:
    """What a message looks like whose first field, of the length at `place`, is a message too."""
    while place < len(head) and head[place] & 0x80:  # the length is a varint
        place += 1
    first = head[place + 1 : place + 2]
    # A GraphDef begins with a node's name and a SavedModel with its MetaInfoDef (both field 1); Paddle's blocks with
    # their number.
    return {b"\x0a": Kind.FROZEN_GRAPH, b"\x08": Kind.PADDLE}.get(first, Kind.UNKNOWN)


def _kind_of_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return Kind.CUT_ZIP
    inner = {name.partition("/")[2] for name in names}
    if {"constants.pkl", "data.pkl"} <= inner and any(name.startswith("code/") for name in inner):
        return Kind.TORCHSCRIPT
    if {"archive_format", "serialized_exported_program.json"} & {*names, *inner}:
        return Kind.PT2
    if "data.pkl" in inner:
        return Kind.TORCH_ZIP
    return Kind.KERAS if {"config.json", "metadata.json"} <= set(names) else Kind.ZIP


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 4:  # a character cut by the end of `head` is no sign of anything
            return False
        text = head[: error.start].decode("utf-8")
    return all(character.isprintable() or character in "\t\r\n" for character in text)
