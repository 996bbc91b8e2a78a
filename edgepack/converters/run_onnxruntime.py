# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "onnxruntime==1.31.1",
#     "numpy==2.4.6",
#     "protobuf==7.36.2",
#     "flatbuffers==25.12.19",
# ]
# ///
"""Run a model with ONNX Runtime on the CPU: a tensor folder in, a tensor folder out.

Request: ``files`` (the model, .ort or .onnx), ``inputs`` and ``outputs`` (tensor names in the order of the tensor
folders), ``samples`` (folder of ``0.npy``... of shape [samples, *shape]), ``threads``, ``timed`` (number of timed
runs), ``optimize`` (False computes the graph as it stands: for reference outputs). The result's ``latency_ms`` is
the median of the timed runs on the first sample, after one warm-up.
"""

import json
import re
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(request.get("threads", 1))
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    if not request.get("optimize", True):
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(request["files"][0], options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise SystemExit(f"cannot be loaded by ONNX Runtime: {one_line(error)}") from error
    names, wanted = request["inputs"], request["outputs"]
    samples = [np.load(Path(request["samples"], f"{i}.npy"), mmap_mode="r") for i in range(len(names))]
    # asarray: a sample of a rank-0 input is a numpy scalar, which ONNX Runtime doesn't take.
    feeds = [{n: np.asarray(v) for n, v in zip(names, values, strict=True)} for values in zip(*samples, strict=True)]
    for feed in feeds:
        feed |= {n: v for n, v in empty_inputs(session).items() if n not in feed}
    try:
        outputs = [session.run(wanted, feed) for feed in feeds]
        latency = timed(lambda: session.run(wanted, feeds[0]), int(request.get("timed", 0)))
    except Exception as error:
        raise SystemExit(f"cannot be run by ONNX Runtime: {one_line(error)}") from error
    out = Path(request["out"])
    for index, values in enumerate(zip(*outputs, strict=True)):
        np.save(out / f"{index}.npy", np.stack(values))
    result = {"latency_ms": latency, "engine_version": onnxruntime.__version__}
    (out / "result.json").write_text(json.dumps(result))


def empty_inputs(session: onnxruntime.InferenceSession) -> dict[str, np.ndarray]:
    """Inputs that never hold a number: they are constants in what the importer made, and no samples."""
    names = {"tensor(float)": "float32", "tensor(double)": "float64"}
    found = [(value.name, value.type) for value in session.get_inputs() if value.shape == [0]]
    return {name: np.zeros(0, names.get(kind, kind.removeprefix("tensor(").rstrip(")"))) for name, kind in found}


def timed(run, times: int) -> float | None:
    """The median of `times` runs in milliseconds. The samples before were the warm-up."""
    durations = []
    for _ in range(times):
        start = time.perf_counter_ns()
        run()
        durations.append((time.perf_counter_ns() - start) / 1e6)
    return statistics.median(durations) if durations else None


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return re.sub(r"Load model from .*? failed: ?", "", text)[:400]  # the path is one of the cache


if __name__ == "__main__":
    main()
