# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "ncnn==1.0.20261020",
#     "numpy==2.4.6",
# ]
# ///
"""Run an ncnn model on a tensor folder, on the CPU.

Request: ``files`` (.param, .bin), ``inputs`` and ``outputs`` (blob names), ``samples`` (tensor folder in ncnn's own
shapes, float32 or int32), ``precision`` ("fp32", "fp16", "int8"), ``threads``, ``timed`` (how many runs to time).
Writes the outputs as a tensor folder of float32, bit for bit as ncnn gives them; ``integer`` in the result lists
the outputs whose bits can only be int32 (ncnn's blobs carry no type), and for fp16 ``largest`` is the largest
magnitude of any blob. ncnn reports errors on the C stderr and may
crash, so it runs in a child whose last useful words become this script's.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

LARGEST = 1 << 23  # an int32 up to here is a denormal when read as float32
DULL = ("network graph not ready", "load_model error", "find_blob_index_by_name")


def main() -> None:
    if len(sys.argv) == 3:
        work(json.loads(Path(sys.argv[1]).read_text()))
        return
    done = subprocess.run([sys.executable, "-I", __file__, sys.argv[1], "child"], stderr=subprocess.PIPE, check=False)
    said = done.stderr.decode("utf-8", "replace")
    sys.stderr.write(said)
    if done.returncode == 0:
        return
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    phase = "run" if any(line == "edgepack: loaded" for line in lines) else "loaded"
    verdict = next((line for line in reversed(lines) if line.startswith("edgepack: ")), "")
    useful = [line for line in lines if not line.startswith(("edgepack: ", *DULL))]
    reason = useful[-1] if useful else verdict.removeprefix("edgepack: ")
    if done.returncode < 0:
        reason = f"it crashed with {signal.Signals(-done.returncode).name}" + (f" after: {reason}" if useful else "")
    raise SystemExit(f"cannot be {phase} by ncnn: {reason[:400]}")


def work(request: dict) -> None:
    os.environ["OMP_WAIT_POLICY"] = "passive"  # threads that spin beside other work slow everything down
    import ncnn
    import numpy as np

    net = ncnn.Net()
    set_options(net.opt, request["precision"], request.get("threads", 1))
    param, weights = request["files"]
    if net.load_param(param) != 0:
        fail("the .param file is refused")
    if net.load_model(weights) != 0:
        fail("the .bin file is refused")
    known = set(net.input_names()), set(net.output_names())
    for names, there in zip((request["inputs"], request["outputs"]), known, strict=True):
        for name in names:
            if name not in there:
                fail(f"it has no blob {name}")
    print("edgepack: loaded", file=sys.stderr, flush=True)

    folder = Path(request["samples"])
    arrays = [np.load(folder / f"{i}.npy", mmap_mode="r") for i in range(len(request["inputs"]))]
    count = len(arrays[0])
    first = infer(ncnn, np, net, request, arrays, 0)
    out = Path(request["out"])
    results = [
        np.lib.format.open_memmap(out / f"{i}.npy", "w+", np.float32, (count, *array.shape))
        for i, array in enumerate(first)
    ]
    for index in range(count):
        outputs = infer(ncnn, np, net, request, arrays, index) if index else first
        for kept, array in zip(results, outputs, strict=True):
            if kept.shape[1:] != array.shape:
                fail(f"an output's shape depends on the values: {kept.shape[1:]} became {array.shape}")
            kept[index] = array
    times = []
    for run in range(request.get("timed", 0)):
        started = time.perf_counter()
        infer(ncnn, np, net, request, arrays, run % count)
        times.append((time.perf_counter() - started) * 1000)
    result = {
        "engine_version": ncnn.__version__,
        "latency_ms": float(np.median(times)) if times else None,
        "shapes": [list(array.shape) for array in first],
        "integer": [i for i, array in enumerate(results) if looks_integer(np, array)],
        "largest": largest(ncnn, np, net, request, arrays) if request["precision"] == "fp16" else None,
    }
    for kept in results:
        kept.flush()
    (out / "result.json").write_text(json.dumps(result))


def set_options(opt, precision: str, threads: int) -> None:
    half = precision == "fp16"
    opt.num_threads = threads
    opt.use_vulkan_compute = False
    opt.use_bf16_packed = opt.use_bf16_storage = False
    opt.use_fp16_packed = opt.use_fp16_storage = opt.use_fp16_arithmetic = half
    opt.use_int8_inference = precision == "int8"


def largest(ncnn, np, net, request: dict, arrays: list) -> float:
    """The largest magnitude of any blob over all samples: this machine computes in float32, a target with float16
    arithmetic makes infinities of what is beyond 65504."""
    lines = [line.split() for line in Path(request["files"][0]).read_text().splitlines()[2:] if line.strip()]
    # A padding adds only its constant to its input, and before a max pooling that is minus infinity on purpose.
    lines = [words for words in lines if words[0] != "Padding"]
    blobs = [name for words in lines for name in words[4 + int(words[2]) : 4 + int(words[2]) + int(words[3])]]
    found = 0.0
    for index in range(len(arrays[0])):
        extractor = net.create_extractor()
        extractor.set_light_mode(False)  # keeps every blob, so that each layer runs once
        for name, array in zip(request["inputs"], arrays, strict=True):
            data = np.ascontiguousarray(array[index])
            extractor.input(name, ncnn.Mat(data.reshape(data.shape or (1,))).clone())
        for name in blobs:
            code, mat = extractor.extract(name)
            if code == 0 and mat.dims and mat.elempack == 1 and mat.elemsize == 4:
                found = max(found, float(np.abs(np.asarray(mat.numpy())).max(initial=0.0)))
    return found


def infer(ncnn, np, net, request: dict, arrays: list, index: int) -> list:
    extractor = net.create_extractor()
    held = []  # a Mat made from an array borrows its memory
    for name, array in zip(request["inputs"], arrays, strict=True):
        data = np.ascontiguousarray(array[index])
        mat = ncnn.Mat(data.reshape(data.shape or (1,)))
        held.append((data, mat))
        if extractor.input(name, mat.clone()) != 0:
            fail(f"input {name} is refused")
    outputs = []
    for name in request["outputs"]:
        code, mat = extractor.extract(name)
        if code != 0 or mat.dims == 0:
            fail(f"output {name} is not computed (code {code})")
        if mat.elempack != 1 or mat.elemsize != 4 or mat.n != 1:
            fail(f"output {name} has elements of {mat.elemsize} bytes, packed by {mat.elempack}, batch {mat.n}")
        outputs.append(np.array(mat.numpy()))
    return outputs


def looks_integer(np, array) -> bool:
    """Whether 32-bit words are small whole numbers, not floats: as floats they would all be denormal or NaN."""
    words = array.view(np.int32)
    return bool(words.any()) and bool((np.abs(words.astype(np.int64)) < LARGEST).all())


def fail(reason: str) -> None:
    print(f"edgepack: {reason}", file=sys.stderr, flush=True)
    os._exit(1)  # ncnn's destructors may crash after a failed load


if __name__ == "__main__":
    main()
