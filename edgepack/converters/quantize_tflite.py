# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "ai-edge-quantizer==0.10.0",
#     "ai-edge-litert==2.3.0",
#     "litert-lm-builder==0.18.1",
#     "absl-py==2.5.1",
#     "backports-strenum==1.3.1",
#     "flatbuffers==25.12.19",
#     "immutabledict==4.3.1",
#     "ml-dtypes==0.6.0",
#     "numpy==2.4.6",
#     "protobuf==7.36.2",
#     "scipy==1.17.1",
#     "tqdm==4.70.1",
#     "typing-extensions==4.16.0",
# ]
# ///
"""Quantize a float32 .tflite with ai-edge-quantizer.

Request: ``model`` (the float32 file), ``precision``: ``int8`` (weights and activations; ranges from ``samples``, a
tensor folder in the file's own layout, with ``inputs``, the tensor names in its order) or ``fp16`` (weights stored as
float16 and widened at run time, float32 at the surface). Writes ``model.tflite``; the result's ``tensors`` tell dtype,
scale and zero point of every tensor at the surface.
"""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from ai_edge_quantizer import quantizer, recipe
from ai_edge_quantizer.algorithm_manager import AlgorithmName
from ai_edge_quantizer.qtyping import ComputePrecision, OpQuantizationConfig, TensorDataType
from ai_edge_quantizer.qtyping import TensorQuantizationConfig, TFLOperationName


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out = Path(request["out"])
    try:
        data = quantize(request)
    except Exception as error:
        raise SystemExit(f"ai-edge-quantizer can't quantize this model: {one_line(error)}") from error
    (out / "model.tflite").write_bytes(data)
    try:
        interpreter = Interpreter(str(out / "model.tflite"), num_threads=1)
        interpreter.allocate_tensors()
    except Exception as error:
        raise SystemExit(f"what ai-edge-quantizer wrote cannot be loaded by LiteRT: {one_line(error)}") from error
    surface = [*interpreter.get_input_details(), *interpreter.get_output_details()]
    result = {
        "tensors": {detail["name"]: described(detail) for detail in surface},
        "ai_edge_quantizer": version("ai-edge-quantizer"),
    }
    (out / "result.json").write_text(json.dumps(result))


def quantize(request: dict) -> bytes:
    model = request["model"]
    if request["precision"] == "fp16":
        worker = quantizer.Quantizer(model)
        weights = TensorQuantizationConfig(num_bits=16, dtype=TensorDataType.FLOAT)
        config = OpQuantizationConfig(
            weight_tensor_config=weights, compute_precision=ComputePrecision.FLOAT, explicit_dequantize=True
        )
        worker.update_quantization_recipe(".*", TFLOperationName.ALL_SUPPORTED, config, AlgorithmName.FLOAT_CASTING)
        return bytes(worker.quantize(enable_progress_report=False).quantized_model)
    worker = quantizer.Quantizer(model, recipe.static_wi8_ai8())
    ranges = worker.calibrate({signature(model): feeds(request)}, num_threads=1)
    return bytes(worker.quantize(ranges, enable_progress_report=False).quantized_model)


def signature(model: str) -> str:
    names = list(Interpreter(model).get_signature_list())
    if len(names) != 1:
        raise ValueError(f"the file has {len(names)} signatures, one is needed")
    return names[0]


def feeds(request: dict) -> list[dict[str, np.ndarray]]:
    """One dictionary a sample; the arrays stay on disk until they are used."""
    names = request["inputs"]
    arrays = [np.load(Path(request["samples"], f"{i}.npy"), mmap_mode="r") for i in range(len(names))]
    return [dict(zip(names, values, strict=True)) for values in zip(*arrays, strict=True)]


def described(detail: dict) -> dict:
    scale, zero = detail["quantization"]
    dtype = np.dtype(detail["dtype"]).name
    quantized = dtype in ("int8", "uint8", "int16") and scale > 0
    return {"dtype": dtype, "scale": float(scale) if quantized else None, "zero_point": int(zero) if quantized else 0}


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__


if __name__ == "__main__":
    main()
