"""`edgepack demo`: the whole road on a real model, with files from the package index.

The model is PP-OCR's text detector (from the rapidocr-onnxruntime wheel, Apache-2.0), the inputs are photographs
and scanned pages (from the scikit-image wheel, BSD-3-Clause). Both wheels are fetched by digest as files; nothing of
them is installed or run.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from edgepack import config, log, pipeline, plan, runtimes
from edgepack.cache import Cache
from edgepack.pipeline import BuildResult
from edgepack.resources import cache_root

MODEL_WHEEL = (
    "rapidocr-onnxruntime",
    "1.4.4",
    "rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
    "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
)
MODEL = "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx"
PHOTO_WHEEL = (
    "scikit-image",
    "0.26.0",
    "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
)
SHAPE = (1, 3, 320, 320)
PREPROCESS = """\
# How PP-OCR's detector was trained: RGB in 0..255, ImageNet's mean and deviation.
[input.x]
layout = "NCHW"
color = "RGB"
resize = [320, 320]
method = "bilinear"
mean = [123.675, 116.28, 103.53]
std = [58.395, 57.12, 57.375]
"""


def run(target_name: str, output: Path) -> tuple[BuildResult, str]:
    """Build the demo's bundle below `output`; returns the result and the same command for doing it by hand."""
    files = prepare(output / "input")
    build_plan = plan.make_plan(
        str(files / "pp_ocr_det.onnx"),
        config.load_target(target_name),
        shapes={"x": SHAPE},
        calibration=files / "calibration",
        samples=files / "samples",
        preprocess=config.load_preprocess(files / "preprocess.toml"),
        output=output,
    )
    result = pipeline.build(build_plan, Cache(cache_root()), plan.prepare(build_plan))
    command = (
        f"edgepack build {files / 'pp_ocr_det.onnx'} --target {target_name} --input x=1x3x320x320 \\\n"
        f"        --calib {files / 'calibration'} --samples {files / 'samples'} \\\n"
        f"        --preprocess {files / 'preprocess.toml'} -o {output}"
    )
    return result, f"\nThe same by hand:\n    {command}"


def prepare(folder: Path) -> Path:
    """Write the demo's model, images and preprocess.toml; returns `folder`.

    Every photograph gives two crops; calibration and verification share no photograph.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(runtimes.fetch(*MODEL_WHEEL)) as wheel:
        (folder / "pp_ocr_det.onnx").write_bytes(wheel.read(MODEL))
    with zipfile.ZipFile(runtimes.fetch(*PHOTO_WHEEL)) as wheel:
        names = sorted(name for name in wheel.namelist() if _is_photograph(name, wheel.getinfo(name).file_size))
        for index, name in enumerate(names):
            part = folder / ("samples" if index % 2 else "calibration")
            part.mkdir(exist_ok=True)
            _write_crops(wheel.read(name), part / Path(name).stem)
    (folder / "preprocess.toml").write_text(PREPROCESS)
    log.note(f"the demo's model and crops of {len(names)} photographs are in {folder}")
    return folder


def _is_photograph(name: str, size: int) -> bool:
    path = Path(name)
    return path.parent.as_posix() == "skimage/data" and path.suffix in (".png", ".jpg", ".jpeg") and size > 40_000


def _write_crops(content: bytes, stem: Path) -> None:
    from PIL import Image

    with Image.open(io.BytesIO(content)) as opened:
        image = opened.convert("RGB")
    side = min(image.size)
    for corner, left in (("a", 0), ("b", image.width - side)):
        top = 0 if corner == "a" else image.height - side
        crop = image.crop((left, top, left + side, top + side)).resize((480, 480), Image.Resampling.BILINEAR)
        crop.save(f"{stem}_{corner}.png")
