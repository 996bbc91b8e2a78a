"""Write ONNX's own node tests (onnx.backend.test) as files. Runs in import_onnx's environment.

    python node_tests.py FOLDER

For each test: ``NAME/model.onnx``, and ``in_0.npy``..., ``out_0.npy``... of its first data set. Tests whose inputs or
outputs are no plain tensors (sequences, optionals, strings, types that numpy lacks) get no arrays.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx.backend.test.case.node import collect_testcases


def main() -> None:
    folder = Path(sys.argv[1])  # a folder, not a request
    count = 0
    for case in collect_testcases(None):
        out = folder / case.name
        out.mkdir(parents=True, exist_ok=True)
        onnx.save(case.model, out / "model.onnx")
        held = {tensor.name for tensor in case.model.graph.initializer}
        names = [value.name for value in case.model.graph.input if value.name not in held]
        (out / "names.json").write_text(json.dumps(names))
        inputs, outputs = case.data_sets[0]
        arrays = {f"in_{i}": value for i, value in enumerate(inputs)}
        arrays |= {f"out_{i}": value for i, value in enumerate(outputs)}
        for name, value in arrays.items():
            if isinstance(value, onnx.TensorProto):
                value = onnx.numpy_helper.to_array(value)
            if isinstance(value, np.ndarray | np.generic) and value.dtype.isbuiltin and value.dtype.kind in "fiub":
                np.save(out / f"{name}.npy", np.asarray(value))
        count += 1
    print(count, "tests")


if __name__ == "__main__":
    main()
