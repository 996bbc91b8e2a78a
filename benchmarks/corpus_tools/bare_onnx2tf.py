"""onnx2tf alone, with its default options, on a copy of a file; its float32 file runs on the same inputs.

Request: ``model``, ``inputs`` ({name: .npy}), ``out``. Axes of inputs and outputs that onnx2tf moved are found by their
sizes (the most generous reading), so that a right file counts as right.
"""

import json
import shutil
import sys
from itertools import permutations
from pathlib import Path

import numpy as np
import onnx2tf
from ai_edge_litert.interpreter import Interpreter


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out = Path(request["out"])
    shutil.copyfile(request["model"], "model.onnx")
    onnx2tf.convert(input_onnx_file_path="model.onnx", output_folder_path="made", non_verbose=True)
    interpreter = Interpreter("made/model_float32.tflite", num_threads=1)
    interpreter.allocate_tensors()
    details = interpreter.get_input_details()
    given = [(name, np.load(path)) for name, path in request["inputs"].items()]
    for position, detail in enumerate(details):
        named = [v for n, v in given if plain(n) == plain(detail["name"])]
        value = named[0] if named else given[position][1]
        shape = tuple(int(d) for d in detail["shape"])
        value = next((value.transpose(p) for p in orders(value.shape, shape)), value)
        interpreter.set_tensor(detail["index"], np.ascontiguousarray(value.astype(detail["dtype"]).reshape(shape)))
    interpreter.invoke()
    for index, detail in enumerate(interpreter.get_output_details()):
        np.save(out / f"{index}.npy", interpreter.get_tensor(detail["index"]))


def plain(name: str) -> str:
    return name.removeprefix("serving_default_").partition(":")[0]


def orders(source: tuple[int, ...], target: tuple[int, ...]) -> list[tuple[int, ...]]:
    axes = range(len(source))
    every = [(0, *axes[2:], 1), *permutations(axes)] if len(source) > 2 else list(permutations(axes))
    return [p for p in every if tuple(source[a] for a in p) == target][:1] if source != target else []


if __name__ == "__main__":
    main()
