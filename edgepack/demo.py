"""`edgepack demo`: the whole road on a real model, with files from the package index.

The model is PP-OCR's text direction classifier (from the rapidocr-onnxruntime wheel, Apache-2.0), the inputs are crops
of scanned pages (from the scikit-image wheel, BSD-3-Clause). Both wheels are fetched by digest as files; nothing of
them is installed or run.
"""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

from edgepack import config, log, pipeline, plan, project, runtimes
from edgepack.cache import Cache
from edgepack.pipeline import BuildResult
from edgepack.resources import cache_root

MODEL_WHEEL = (
    "rapidocr-onnxruntime",
    "1.4.4",
    "rapidocr_onnxruntime-1.4.4-py3-none-any.whl",
    "971d7d5f223a7a808662229df1ef69893809d8457d834e6373d3854bc1782cbf",
)
MODEL = "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx"
PHOTO_WHEEL = (
    "scikit-image",
    "0.26.0",
    "scikit_image-0.26.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af",
)
IMAGES = {"calibration": ("page.png", "coins.png"), "samples": ("text.png",)}
CROPS = 20
SHAPE = (1, 3, 48, 192)
PREPROCESS = """\
# How PP-OCR's direction classifier was trained: BGR, (x - 127.5) / 127.5.
[input.x]
layout = "NCHW"
color = "BGR"
resize = [48, 192]
method = "bilinear"
mean = 127.5
std = 127.5
"""


def run(target_name: str, output: Path) -> tuple[BuildResult, str]:
    """Build the demo's bundle below `output`; returns the result and the same command for doing it by hand."""
    files = prepare(output / "input")
    build_plan = plan.make_plan(
        str(files / "pp_ocr_cls.onnx"),
        config.load_target(target_name),
        shapes={"x": SHAPE},
        calibration=files / "calibration",
        samples=files / "samples",
        preprocess=project.load(files / "preprocess.toml").preprocess,
        output=output,
    )
    result = pipeline.build(build_plan, Cache(cache_root()), plan.prepare(build_plan))
    command = (
        f"edgepack build {files / 'pp_ocr_cls.onnx'} --target {target_name} --input x=1x3x48x192 \\\n"
        f"        --calib {files / 'calibration'} --samples {files / 'samples'} \\\n"
        f"        --preprocess {files / 'preprocess.toml'} -o {output}"
    )
    return result, f"\nThe same by hand:\n    {command}"


def prepare(folder: Path) -> Path:
    """Write the demo's model, images and preprocess.toml; returns `folder`.

    Calibration and verification crops come from different pages; every other crop is upside down.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(runtimes.fetch(*MODEL_WHEEL)) as wheel:
        (folder / "pp_ocr_cls.onnx").write_bytes(wheel.read(MODEL))
    with zipfile.ZipFile(runtimes.fetch(*PHOTO_WHEEL)) as wheel:
        for part, names in IMAGES.items():
            (folder / part).mkdir(exist_ok=True)
            for name in names:
                _write_crops(wheel.read(f"skimage/data/{name}"), folder / part / Path(name).stem)
    (folder / "preprocess.toml").write_text(PREPROCESS)
    log.note(f"the demo's model and images are in {folder}")
    return folder


def _write_crops(content: bytes, stem: Path) -> None:
    """Crops of about one line of text, spread over a page."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as opened:
        image = opened.convert("RGB")
    for number in range(CROPS):
        height = 28 + 4 * (number % 3)
        width = 4 * height
        top = (image.height - height) * (7 * number % CROPS) // (CROPS - 1)
        left = (image.width - width) * (3 * number % CROPS) // (CROPS - 1)
        crop = image.crop((left, top, left + width, top + height)).resize((192, 48), Image.Resampling.BILINEAR)
        if number % 2:
            crop = crop.transpose(Image.Transpose.ROTATE_180)
        crop.save(f"{stem}_{number:02}.png")
