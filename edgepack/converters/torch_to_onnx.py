# /// script
# requires-python = "==3.11.*"
# dependencies = [
#     "torch==2.13.0",
#     "numpy==2.4.6",
#     "onnx==1.23.2",
#     "onnxruntime==1.31.1",
#     "flatbuffers==25.12.19",
#     "onnxscript==0.7.2",
#     "onnx-ir==1.1.0",
#     "safetensors==0.8.0",
#     "protobuf==7.36.2",
#     "ml-dtypes==0.6.0",
#     "sympy==1.14.0",
#     "networkx==3.6.1",
#     "jinja2==3.1.6",
#     "markupsafe==3.0.4",
#     "mpmath==1.3.0",
#     "fsspec==2026.9.0",
#     "filelock==4.2.11",
#     "packaging==26.3",
#     "setuptools==84.2.1",
#     "typing-extensions==4.16.0",
# ]
# ///
"""Run a PyTorch model, or export it to ONNX. Works under the user's own interpreter too.

Request: ``mode`` (``export`` or ``reference``), ``kind`` (``pt2``, ``torchscript`` or ``factory``), ``source`` (file,
or ``package.module:factory``), ``weights`` (state dict, a folder of safetensors, or null), ``inputs`` (list of name,
shape, dtype: the inputs of ``forward`` in order; for ``pt2`` only what its signature leaves open), ``cwd`` and
``pythonpath`` (where a factory's code is found), ``samples`` (tensor folder, for ``reference``). ``export`` writes
``model.onnx``; ``reference`` writes a tensor folder. ``result.json`` holds ``notes``, or ``error`` (kind, id,
message, hint).

``export`` with ``samples`` and ``outputs`` (an empty folder) does the work of ``reference`` beside, in a fork of the
process that has imported torch and opened the model: neither sees what the other did. ``ran`` in the result says
whether it went well; where it didn't, ``reference`` by itself says why.

No pickle is ever trusted: torch.load runs with weights_only=True here whatever its caller says, and nothing is tried
again without it. Only a factory's code is the user's own and runs.
"""

import json
import os
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from torch_to_onnx_refusal import Refused

try:
    import numpy as np
    import torch
    from torch_to_onnx_sources import open_source
    from torch_to_onnx_trust import distrust_pickles
except ImportError as missing:
    torch = None
    absent = str(missing)
sys.path.remove(str(Path(__file__).parent))  # the user's code finds its own modules, whatever those here are called


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out = Path(request["out"])
    try:
        result = run(request, out)
    except Refused as error:
        result = {"error": error.entry}
    (out / "result.json").write_text(json.dumps(result))


def run(request: dict[str, Any], out: Path) -> dict[str, Any]:
    if torch is None:
        raise Refused(
            f"The interpreter {sys.executable} can't import torch: {absent}.",
            f"Install it there (`{sys.executable} -m pip install torch onnx onnxscript`), or name another.",
            "EP402",
            "tool",
        )
    # One thread per core of the child's own limit: results must not depend on the machine's load.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.manual_seed(0)
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms() is the same and imports Inductor: 0.8 s
    torch.backends.mha.set_fastpath_enabled(False)  # a kernel for all of attention, which no exporter knows
    distrust_pickles()
    warnings.simplefilter("ignore")
    with torch.no_grad():
        source = open_source(request)
        if request["mode"] == "reference":
            reference(source, Path(request["samples"]), out)
            return {"notes": []}
        if not request.get("samples"):
            return {"notes": source.export(out / "model.onnx")}
        beside = fork(lambda: reference(source, Path(request["samples"]), Path(request["outputs"])))
        try:
            notes = source.export(out / "model.onnx")
        except BaseException:
            beside(True)
            raise
        return {"notes": notes, "ran": beside(False)}


def fork(work: Callable[[], None]) -> Callable[[bool], bool]:
    """Start `work` in a copy of this process. Returns a function that ends it (at once when told so) and says whether
    the work was done. A process with threads isn't copied: they would be missing in the copy."""
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        return lambda _: False
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # the last words are the exporter's
            work()
            code = 0
        finally:
            os._exit(code)

    def end(now: bool) -> bool:
        if now:
            os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1] == 0

    return end


def reference(source: Any, samples: Path, out: Path) -> None:
    count_inputs = len(list(samples.glob("*.npy")))
    arrays = [np.load(samples / f"{i}.npy", mmap_mode="r") for i in range(count_inputs)]
    collected: list[list[np.ndarray]] = []
    for k in range(len(arrays[0])):
        # A copy: torch wants writable memory, and a model may change its input in place.
        tensors = [torch.from_numpy(np.array(array[k])) for array in arrays]
        outputs = [tensor.detach().cpu().contiguous().numpy().copy() for _, tensor in source(*tensors)]
        collected.append(outputs)
    for i, column in enumerate(zip(*collected, strict=True)):
        np.save(out / f"{i}.npy", np.stack(column))


if __name__ == "__main__":
    main()
