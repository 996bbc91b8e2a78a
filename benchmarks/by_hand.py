"""The same conversion with each tool called by itself, as a user would without edgepack.

    PYTHON_OF_THE_STEP by_hand.py STEP FOLDER ...

Ten steps, in the three environments that these tools need (`build_speed.py` makes them):
export, simplify, preprocess and int8 are the few lines of Python that every user writes; the rest are the
tools' own commands. Nothing here compares an output with anything, and nothing builds for a device.
"""

from __future__ import annotations

import sys
from pathlib import Path

TOOLS = (
    "torch==2.13.0", "onnx==1.23.2", "onnxscript==0.7.2", "onnxruntime==1.31.1", "onnxsim==0.8.1", "sympy==1.14.0",
    "pnnx==20261020", "ncnn==1.0.20261020", "numpy==2.4.6", "pillow==13.0.0",
)  # fmt: skip
ENVIRONMENTS = {
    "tools": ("3.11", TOOLS),
    "onnx2tf": ("3.12", ("onnx2tf==2.6.9",)),
    "aeq": ("3.11", ("ai-edge-quantizer==0.10.0", "ai-edge-litert==2.3.0", "numpy==2.4.6")),
}


def steps(python: dict[str, Path], project: Path, weights: Path, calibration: Path) -> list[tuple[str, list[object]]]:
    """(name, command) in order; commands run in one working folder that starts empty."""
    me = Path(__file__).absolute()
    tools, aeq = python["tools"], python["aeq"]
    ort = ["-m", "onnxruntime.tools.convert_onnx_models_to_ort", "--optimization_style", "Fixed"]
    pnnx = [tools.parent / "pnnx"]
    return [
        ("export", [tools, me, "export", project, weights]),
        ("simplify", [tools, me, "simplify"]),
        ("preprocess", [tools, "-m", "onnxruntime.quantization.preprocess", "--input=sim.onnx", "--output=pre.onnx"]),
        ("static INT8", [tools, me, "int8", calibration]),
        (".ort fp32", [tools, *ort, "--output_dir", "ort", "sim.onnx"]),
        (".ort INT8", [tools, *ort, "--output_dir", "ort", "int8.onnx"]),
        ("onnx2tf", [python["onnx2tf"].parent / "onnx2tf", "-i", "copy.onnx", "-o", "tf", "-nuo", "-nuonag"]),
        ("INT8 TFLite", [aeq, me, "tflite", "tf/copy_float32.tflite"]),
        ("pnnx fp32", [*pnnx, "fp32.onnx", "inputshape=[1,3,224,224]", "fp16=0"]),
        ("pnnx fp16", [*pnnx, "fp16.onnx", "inputshape=[1,3,224,224]", "fp16=1"]),
    ]  # fmt: skip


def export(project: str, weights: str) -> None:
    import torch

    sys.path.insert(0, project)
    import networks

    model = networks.efficientnet_lite0()
    model.load_state_dict(torch.load(weights, weights_only=True))
    torch.onnx.export(
        model.eval(), torch.zeros(1, 3, 224, 224), "model.onnx", input_names=["x"], output_names=["y"],
        opset_version=17, dynamo=False,
    )  # fmt: skip


def simplify() -> None:
    import onnx
    import onnxsim

    model, ok = onnxsim.simplify(onnx.load("model.onnx"))
    assert ok
    for name in ("sim", "copy", "fp32", "fp16"):  # onnx2tf and pnnx write beside, or over, their input
        onnx.save(model, f"{name}.onnx")


def int8(folder: str) -> None:
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from PIL import Image

    pixels = [np.asarray(Image.open(p).convert("RGB"), np.float32) for p in sorted(Path(folder).glob("*.png"))]
    arrays = [((p - 127) / 128).transpose(2, 0, 1)[None] for p in pixels]
    np.save("calibration.npy", np.stack(arrays))

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left = iter(arrays)

        def get_next(self):
            array = next(self.left, None)
            return None if array is None else {"x": array}

    quantize_static(
        "pre.onnx", "int8.onnx", Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip


def tflite(path: str) -> None:
    import numpy as np
    from ai_edge_litert.interpreter import Interpreter
    from ai_edge_quantizer import quantizer, recipe

    signature = Interpreter(path).get_signature_list()
    key, names = next(iter(signature.items()))
    data = [{names["inputs"][0]: a.transpose(0, 2, 3, 1)} for a in np.load("calibration.npy")]
    tool = quantizer.Quantizer(path, recipe.static_wi8_ai8())
    result = tool.calibrate({key: data})
    tool.quantize(result).export_model("int8.tflite")


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
