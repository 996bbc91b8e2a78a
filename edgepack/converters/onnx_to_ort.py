# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "onnxruntime==1.31.1",
#     "onnx==1.23.2",
#     "numpy==2.4.6",
#     "protobuf==7.36.2",
#     "ml-dtypes==0.6.0",
#     "flatbuffers==25.12.19",
# ]
# ///
"""Write an ONNX model in ONNX Runtime's own format (.ort), optimised for any CPU.

Request: ``model`` (ONNX file). Writes ``model.ort``. All optimisations run but two: the NCHWc transformer rewrites
convolutions to the blocked layout of *this* machine's CPU (the NHWC one, which makes INT8 convolutions 1.7
times as fast, is the same everywhere), and WeightBiasQuantization puts the weights of layers that stay in float
between quantized ones into int8 all the same, with one scale for the whole tensor.
"""

import ctypes
import json
import os
import shutil
import sys
from pathlib import Path

import onnxruntime

ADDR_NO_RANDOMIZE = 0x0040000  # of sys/personality.h
QUERY = 0xFFFFFFFF
LEFT_OUT = ["NchwcTransformer", "WeightBiasQuantization"]
FIXED = "EDGEPACK_FIXED_ADDRESSES"


def main() -> None:
    if not os.environ.get(FIXED):
        prepare(json.loads(Path(sys.argv[1]).read_text()))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = "model.ort"
    options.add_session_config_entry("session.save_model_format", "ORT")
    try:
        onnxruntime.InferenceSession(
            "model.onnx", options, providers=["CPUExecutionProvider"], disabled_optimizers=LEFT_OUT
        )
    except Exception as error:
        raise SystemExit(f"ONNX Runtime can't load this model: {' '.join(str(error).split())[:400]}") from error
    out = Path(json.loads(Path("request.json").read_text())["out"])  # only now: see prepare
    shutil.copyfile("model.ort", out / "model.ort")
    (out / "result.json").write_text(json.dumps({"onnxruntime": onnxruntime.__version__}))


def prepare(request: dict) -> None:
    """Start again in a process that looks the same in every folder, so that the same model gives the same bytes.

    The file's tables come in the order of hashed addresses, so addresses must not be random, and nothing whose length
    differs between two folders (paths in the request, in arguments or in the environment) may be in memory before the
    file is written. ONNX Runtime also notes the model's path in what it writes.
    """
    os.chdir(request["scratch"])
    shutil.copyfile(request["model"], "model.onnx")
    Path("request.json").write_text(json.dumps(request))
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        libc.personality.argtypes = [ctypes.c_ulong]
        now = libc.personality(QUERY)
        if now != -1:
            libc.personality(now | ADDR_NO_RANDOMIZE)
    shutil.copyfile(__file__, "script.py")
    environment = {FIXED: "1", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0", "PYTHONSAFEPATH": "1"}
    again = "exec(compile(open('script.py').read(), 'script.py', 'exec'))"  # run as a file, it would know its folder
    os.execve(sys.executable, [sys.executable, "-s", "-c", again], environment)  # noqa: S606 - there is no shell


if __name__ == "__main__":
    main()
