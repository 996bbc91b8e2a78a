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

Request: ``model`` (ONNX file). Writes ``model.ort``. All optimisations run but one: the NCHWc transformer rewrites
convolutions to the blocked layout of *this* machine's CPU. (The NHWC one, which makes INT8 convolutions 1.7
times as fast, is the same everywhere.)
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


def main() -> None:
    fix_addresses()
    request = json.loads(Path(sys.argv[1]).read_text())
    out, scratch = Path(request["out"]), Path(request["scratch"])
    # ONNX Runtime notes the file's path in what it writes: a fixed name keeps the bytes the same everywhere.
    shutil.copyfile(request["model"], scratch / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.optimized_model_filepath = "model.ort"
    options.add_session_config_entry("session.save_model_format", "ORT")
    try:
        onnxruntime.InferenceSession(
            "model.onnx", options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"]
        )
    except Exception as error:
        raise SystemExit(f"ONNX Runtime can't load this model: {' '.join(str(error).split())[:400]}") from error
    shutil.copyfile(scratch / "model.ort", out / "model.ort")
    (out / "result.json").write_text(json.dumps({"onnxruntime": onnxruntime.__version__}))


def fix_addresses() -> None:
    """Start again without address randomisation: the file's tables come in the order of hashed addresses."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    libc.personality.argtypes = [ctypes.c_ulong]
    now = libc.personality(QUERY)
    if now == -1 or now & ADDR_NO_RANDOMIZE:
        return
    if libc.personality(now | ADDR_NO_RANDOMIZE) != -1:
        os.execv(sys.executable, [sys.executable, "-I", *sys.argv])  # noqa: S606 - there is no shell


if __name__ == "__main__":
    main()
