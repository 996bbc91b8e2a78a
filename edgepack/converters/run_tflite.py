# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "ai-edge-litert==2.3.0",
#     "numpy==2.4.6",
#     "protobuf==7.36.2",
#     "ml-dtypes==0.6.0",
#     "flatbuffers==25.12.19",
#     "tqdm==4.70.1",
# ]
# ///
"""Run a .tflite file with LiteRT (XNNPACK) on the CPU: a tensor folder in, a tensor folder out.

Request: ``files`` (the model), ``inputs`` and ``outputs`` (tensor names in the order of the tensor folders),
``samples`` (folder of ``0.npy``... of shape [samples, *shape]), ``threads``, ``timed`` (number of timed runs). The
result's ``latency_ms`` is the median of the timed runs on the last sample; the samples before were the warm-up.
"""

import json
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    try:
        interpreter = Interpreter(request["files"][0], num_threads=int(request.get("threads", 1)))
        interpreter.allocate_tensors()
    except Exception as error:
        raise SystemExit(f"cannot be loaded by LiteRT: {one_line(error)}") from error
    inputs = indices(interpreter.get_input_details(), request["inputs"])
    outputs = indices(interpreter.get_output_details(), request["outputs"])
    samples = [np.load(Path(request["samples"], f"{i}.npy"), mmap_mode="r") for i in range(len(inputs))]
    results: list[list[np.ndarray]] = [[] for _ in outputs]
    try:
        for values in zip(*samples, strict=True):
            for index, value in zip(inputs, values, strict=True):
                interpreter.set_tensor(index, np.ascontiguousarray(value))
            interpreter.invoke()
            for kept, index in zip(results, outputs, strict=True):
                kept.append(interpreter.get_tensor(index))
        latency = timed(interpreter.invoke, int(request.get("timed", 0)))
    except Exception as error:
        raise SystemExit(f"cannot be run by LiteRT: {one_line(error)}") from error
    out = Path(request["out"])
    for number, kept in enumerate(results):
        np.save(out / f"{number}.npy", np.stack(kept))
    result = {"latency_ms": latency, "engine_version": version("ai-edge-litert")}
    (out / "result.json").write_text(json.dumps(result))


def indices(details: list[dict], names: list[str]) -> list[int]:
    there = {detail["name"]: int(detail["index"]) for detail in details}
    missing = [name for name in names if name not in there]
    if missing:
        raise SystemExit(f"the file has no tensor {missing[0]!r} at its surface, only {', '.join(there)}")
    return [there[name] for name in names]


def timed(run, times: int) -> float | None:
    """The median of `times` runs in milliseconds."""
    durations = []
    for _ in range(times):
        start = time.perf_counter_ns()
        run()
        durations.append((time.perf_counter_ns() - start) / 1e6)
    return statistics.median(durations) if durations else None


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]


if __name__ == "__main__":
    main()
