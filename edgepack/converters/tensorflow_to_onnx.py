# /// script
# requires-python = ">=3.11,<3.14"
# dependencies = [
#     "tensorflow-cpu==2.21.0 ; platform_machine == 'x86_64' and sys_platform != 'darwin'",
#     "tensorflow==2.21.0 ; platform_machine != 'x86_64' or sys_platform == 'darwin'",
#     "tf2onnx==1.17.0",
#     "keras==3.15.1",
#     "onnx==1.23.2",
#     "numpy==2.4.6",
#     "protobuf==7.36.2",
#     "ml-dtypes==0.6.0",
#     "h5py==3.14.0",
#     "flatbuffers==25.12.19",
#     "typing-extensions==4.16.0",
#     "absl-py==2.5.1",
#     "astunparse==1.6.3",
#     "gast==0.7.0",
#     "google-pasta==0.2.0",
#     "grpcio==1.85.1",
#     "libclang==18.1.1",
#     "namex==0.1.0",
#     "opt-einsum==3.4.0",
#     "optree==0.20.0",
#     "packaging==26.3",
#     "requests==2.34.2",
#     "rich==15.0.0",
#     "setuptools==84.2.1",
#     "six==1.17.0",
#     "termcolor==3.3.0",
#     "wrapt==2.5.2",
# ]
# ///
"""Run a Keras model or a TensorFlow SavedModel, or export it (or a .tflite file) to ONNX with tf2onnx.

Request: ``mode`` (``export`` or ``reference``), ``kind`` (``keras``, ``h5``, ``saved_model`` or ``tflite``),
``source``, ``name`` (what to call it in messages), ``shapes`` ({input name: sizes} from the command line),
``signature`` (of a SavedModel, or null); for ``reference`` ``inputs`` and ``outputs`` (names, in the order of the
tensor folders) and ``samples``. ``export`` writes ``model.onnx``; ``reference`` a tensor folder. ``result.json`` holds
``notes``, or ``error`` (kind, id, message, hint).

The graph is traced at fixed sizes, so that tf2onnx folds every computation with shapes. Keras files are loaded with
``safe_mode=True``, after the caller has looked through their configuration; no code of a file ever runs.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"  # its results depend on the CPU and on the number of threads
os.environ["KERAS_BACKEND"] = "tensorflow"

import numpy as np
import onnx

sys.path.insert(0, str(Path(__file__).parent))
from surface import Refused
from tensorflow_sources import Keras, SavedModel, Traced
from tf2onnx_mends import OPSET, refuse_leftovers, sort, unconvertible


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out = Path(request["out"])
    try:
        result: dict[str, Any] = {"notes": run(request, out)}
    except Refused as error:
        result = {"error": error.entry}
    (out / "result.json").write_text(json.dumps(result))


def run(request: dict[str, Any], out: Path) -> list[str]:
    import tensorflow as tf

    threads = int(os.environ.get("OMP_NUM_THREADS", "1"))
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if request["kind"] == "tflite":
        save(from_tflite(request), out)
        return []
    source = SavedModel(request) if request["kind"] == "saved_model" else Keras(request)
    if request["mode"] == "reference":
        reference(source, request, out)
        return []
    save(source.export(), out)
    return source.notes


def from_tflite(request: dict[str, Any]) -> onnx.ModelProto:
    import tf2onnx

    try:
        made, _ = tf2onnx.convert.from_tflite(request["source"], opset=OPSET)
    except Exception as error:
        raise unconvertible(request["name"], error) from error
    refuse_leftovers(made, request["name"])
    for value in made.graph.input:  # tf2onnx opens the batch axis again, though the file's own sizes are fixed
        sizes = request["inputs"][value.name]
        for dim, size in zip(value.type.tensor_type.shape.dim, sizes, strict=True):
            dim.dim_value = size
    sort(made.graph.input, list(request["inputs"]))
    sort(made.graph.output, request["outputs"])
    return made


def save(model: onnx.ModelProto, out: Path) -> None:
    (out / "model.onnx").write_bytes(model.SerializeToString(deterministic=True))


def reference(source: Traced, request: dict[str, Any], out: Path) -> None:
    import tensorflow as tf

    arrays = {
        name: np.load(Path(request["samples"], f"{i}.npy"), mmap_mode="r") for i, name in enumerate(request["inputs"])
    }
    count = len(next(iter(arrays.values())))
    collected: list[list[np.ndarray]] = []
    for k in range(count):
        feeds = [
            tf.constant(np.array(arrays[name][k]), spec.dtype) if name in arrays else tf.zeros(spec.shape, spec.dtype)
            for (name, _), spec in zip(source.inputs, source.specs, strict=True)
        ]
        collected.append([np.array(tensor) for tensor in source.function(*feeds)])
    for i, name in enumerate(request["outputs"]):
        place = source.outputs.index(name)
        np.save(out / f"{i}.npy", np.stack([outputs[place] for outputs in collected]))


if __name__ == "__main__":
    main()
