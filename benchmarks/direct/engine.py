"""An engine's own Python API: ENGINE MODEL INPUT THREADS WARMUP RUNS [more as engine.cpp takes it]. One line a run."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np


def onnxruntime(model: str, data: bytes, threads: int, rest: list[str]) -> Callable[[], np.ndarray]:
    """An InferenceSession that is fed a numpy array."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    array = np.frombuffer(data, np.float32).reshape([int(size) for size in rest[2].split(",")])
    return lambda: session.run([rest[3]], {rest[1]: array})[0]


def tflite(model: str, data: bytes, threads: int, rest: list[str]) -> Callable[[], np.ndarray]:
    """The interpreter that most people use; XNNPACK is on by default. The input stays, as in the other programs."""
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=model, num_threads=threads)
    interpreter.allocate_tensors()
    entry = interpreter.get_input_details()[0]
    interpreter.set_tensor(entry["index"], np.frombuffer(data, entry["dtype"]).reshape(entry["shape"]))
    output = interpreter.get_output_details()[0]["index"]

    def run() -> np.ndarray:
        interpreter.invoke()
        return interpreter.get_tensor(output)

    return run


def ncnn(model: str, data: bytes, threads: int, rest: list[str]) -> Callable[[], np.ndarray]:
    """The wheel's binding; its library is built by upstream with every layer and instruction set."""
    import ncnn as binding

    net = binding.Net()
    net.opt.num_threads = threads
    net.opt.use_vulkan_compute = False
    for name in ("fp16_packed", "fp16_storage", "fp16_arithmetic", "bf16_storage", "int8_inference"):
        setattr(net.opt, f"use_{name}", False)
    assert net.load_param(model) == 0 and net.load_model(rest[0]) == 0
    array = np.frombuffer(data, np.float32).reshape([int(size) for size in rest[2].split(",")])
    mat = binding.Mat(array).clone()

    def run() -> np.ndarray:
        with net.create_extractor() as extractor:
            extractor.input(rest[1], mat)
            return np.array(extractor.extract(rest[3])[1])

    return run


def main() -> None:
    """Warm up, time, print."""
    engine, model, data, threads, warmup, runs, *rest = sys.argv[1:]
    run = {"onnxruntime": onnxruntime, "tflite": tflite, "ncnn": ncnn}[engine](
        model, Path(data).read_bytes(), int(threads), rest
    )
    for _ in range(int(warmup)):
        run()
    samples = []
    for _ in range(int(runs)):
        start = time.perf_counter_ns()
        run()
        samples.append(time.perf_counter_ns() - start)
    print("\n".join(map(str, samples)))
    print(f"{float(run().ravel()[0]):.9g}", file=sys.stderr)


if __name__ == "__main__":
    main()
