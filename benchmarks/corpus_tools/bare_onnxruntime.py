"""ONNX Runtime alone on a file, with its default options.

Request: ``model``, ``inputs`` ({name: .npy}), ``out``.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    session = onnxruntime.InferenceSession(request["model"], providers=["CPUExecutionProvider"])
    feed = {name: np.load(path) for name, path in request["inputs"].items()}
    for index, value in enumerate(session.run(None, feed)):
        np.save(Path(request["out"]) / f"{index}.npy", np.asarray(value))


if __name__ == "__main__":
    main()
