# /// script
# requires-python = "==3.11.*"
# dependencies = [
#     "filelock>=3.13",
#     "numpy==2.4.6",
#     "opencv-python-headless>=4.10",
#     "pillow==13.0.0",
#     "platformdirs>=4",
#     "rich>=13",
#     "scikit-image==0.26.0",
#     "scikit-learn==1.9.1",
# ]
# ///
"""Pre-processing in C++: its numbers against numpy's over 100 photographs, and its time against OpenCV and Pillow.

    uv run --script benchmarks/preprocess.py [--machine native] [--machine aarch64] [--machine armhf] [--runs 50]

Needs cmake, g++ and, for the ARM machines, their cross compilers and qemu-user. Under emulation only numbers are
compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import inputs
import numpy as np
import PIL
from PIL import Image

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
from edgepack import artifact, frames, preprocess  # noqa: E402
from edgepack.bundle import write_variant  # noqa: E402
from edgepack.types import Artifact, Binding, Bound, Preprocess, TensorSpec  # noqa: E402

MACHINES = {
    "native": ((), "", ""),
    "aarch64": (("qemu-aarch64",), "aarch64-linux-gnu-", "-march=armv8-a"),
    "armhf": (("qemu-arm",), "arm-linux-gnueabihf-", "-march=armv7-a+simd -mfloat-abi=hard"),
}
MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CLASSIFY = Preprocess(resize=256, crop=(224, 224), mean=MEAN, std=STD)
LETTERBOX = Preprocess(resize=(640, 640), fit="inside", pad=(640, 640), pad_value=(114.0,), std=(255.0,))
BYTES = Preprocess(layout="NHWC", color="BGR", resize=(160, 200))
GRAY = Preprocess(layout="NHW", color="GRAY", resize=(48, 200), fit="height", pad=(48, 200), pad_place="top_left",
                  pad_value=(127.5,), mean=(127.5,), std=(127.5,))  # fmt: skip
NEAREST = Preprocess(color="BGR", resize=(97, 131), method="nearest", mean=MEAN)


def float_spec(*shape: int) -> TensorSpec:
    return TensorSpec(name="x", dtype="float32", shape=shape)


INT8 = Binding(name="x", dtype="int8", shape=(1, 224, 224, 3), perm=(0, 2, 3, 1), scale=0.0187, zero_point=-14)
# name -> declaration, input, the engine's tensor (None: the same)
DECLARED: dict[str, tuple[Preprocess, TensorSpec, Binding | None]] = {
    "classifier": (CLASSIFY, float_spec(1, 3, 224, 224), None),
    "classifier, int8 NHWC inside": (CLASSIFY, float_spec(1, 3, 224, 224), INT8),
    "letterbox": (LETTERBOX, float_spec(1, 3, 640, 640), None),
    "text line, gray": (GRAY, float_spec(1, 48, 200), None),
    "nearest": (NEAREST, float_spec(1, 3, 97, 131), None),
    "uint8 NHWC": (BYTES, TensorSpec(name="x", dtype="uint8", shape=(1, 160, 200, 3)), None),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machine", action="append", choices=list(MACHINES))
    parser.add_argument("--runs", type=int, default=50)
    given = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}; OpenCV {cv2.__version__}, Pillow {PIL.__version__}, numpy {np.__version__}")
    for machine in given.machine or ["native"]:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            build(machine, folder / "build")
            compare(machine, folder)
            if machine == "native":
                measure(folder, given.runs)
    print(f"load {os.getloadavg()[0]:.1f}")


def build(machine: str, folder: Path) -> None:
    _, prefix, flags = MACHINES[machine]
    options = ["-DCMAKE_BUILD_TYPE=Release", "-DEDGEPACK_BACKEND=null", "-DEDGEPACK_ENGINE_VERSION=1"]
    if prefix:
        options += ["-DCMAKE_SYSTEM_NAME=Linux", f"-DCMAKE_C_COMPILER={prefix}gcc", f"-DCMAKE_CXX_COMPILER={prefix}g++",
                    f"-DCMAKE_CXX_FLAGS={flags}", "-DCMAKE_EXE_LINKER_FLAGS=-static"]  # fmt: skip
    quiet: dict[str, Any] = {"check": True, "stdout": subprocess.DEVNULL}
    subprocess.run(["cmake", "-S", ROOT / "cpp_runtime", "-B", folder, *options], **quiet)
    subprocess.run(["cmake", "--build", folder, "--target", "edgepack-null", "time_image"], **quiet)


# --- numbers --------------------------------------------------------------------------------------------------------


def photographs() -> list[np.ndarray]:
    """100 pieces of 19 photographs, of any size and shape; no side has a length that anyone chose."""
    random = np.random.default_rng(3)
    names = (*inputs.CALIBRATION, *inputs.VERIFICATION)
    found = []
    for number in range(100):
        image = np.asarray(inputs.photograph(names[number % len(names)]))
        height, width = (int(side * random.uniform(0.3, 1.0)) for side in image.shape[:2])
        top, left = (int(random.integers(0, n - m + 1)) for n, m in zip(image.shape, (height, width), strict=False))
        found.append(image[top : top + height, left : left + width])
    return found


def encode(image: np.ndarray, kind: str) -> tuple[bytes, int, int]:
    """A photograph as a raw frame, with its width and height: YUV formats lose an odd row and column."""
    height, width = image.shape[:2]
    if kind == "rgb":
        return np.ascontiguousarray(image).tobytes(), width, height
    height, width = height // 2 * 2, width // 2 * 2
    i420 = cv2.cvtColor(np.ascontiguousarray(image[:height, :width]), cv2.COLOR_RGB2YUV_I420).reshape(-1)
    y, u, v = np.split(i420, [height * width, height * width * 5 // 4])
    if kind == "nv12":
        return y.tobytes() + np.stack([u, v], axis=-1).tobytes(), width, height
    u, v = (np.repeat(part.reshape(height // 2, width // 2), 2, axis=0) for part in (u, v))
    y = y.reshape(height, width)
    return np.stack([y[:, 0::2], u, y[:, 1::2], v], axis=-1).tobytes(), width, height  # yuyv


def compare(machine: str, folder: Path) -> None:
    start = MACHINES[machine][0]
    print(f"\n{machine}: 100 photographs, C++ against numpy\n")
    print("| declaration | frame | the same bits | largest difference | as a share of the largest value |")
    print("|---|---|---:|---:|---:|")
    pieces = photographs()
    for name, (how, spec, inside) in DECLARED.items():
        binding = inside or artifact.identity(spec)
        variant = write(folder / "case", how, spec, binding)
        for kind in ("rgb", "nv12", "yuyv"):
            same, worst, scale = 0, 0.0, 0.0
            for image in pieces:
                data, width, height = encode(image, kind)
                rgb = frames.to_rgb(frames.split(data, kind, width, height), kind, width, height)
                source = preprocess.apply(rgb, how, spec.shape, spec.dtype)
                expected = artifact.from_engine(artifact.to_engine(source, binding), binding, spec)
                (folder / "frame").write_bytes(data)
                words = ["run", "--variant", variant, "--outputs", folder, "--image", folder / "frame"]
                words += ["--format", kind, "--size", f"{width}x{height}"]
                subprocess.run([*start, folder / "build" / "edgepack-null", *words], check=True, capture_output=True)
                got = np.load(folder / "out_0.npy")
                same += int(np.array_equal(got, expected))
                worst = max(worst, float(np.abs(got.astype(float) - expected.astype(float)).max()))
                scale = max(scale, float(np.abs(expected.astype(float)).max()))
            step = binding.scale or (1 if spec.dtype == "uint8" else None)
            largest = f"{worst:.3g}" if step is None else f"{worst / step:.3g} LSB"
            print(f"| {name} | {kind} | {same} of 100 | {largest} | {worst / scale:.2g} |")


def write(folder: Path, how: Preprocess, spec: TensorSpec, binding: Binding) -> Path:
    """A variant of the null engine, which gives its input back."""
    subprocess.run(["rm", "-rf", folder], check=True)
    (folder.parent / "model.none").write_bytes(b"")
    made = Artifact(folder=folder.parent, files=("model.none",), inputs=(binding,), outputs=(binding,))
    write_variant(
        folder, made, engine="null", engine_version="1", precision="fp32", bound=Bound(cosine=0.9),
        inputs=(spec,), outputs=(spec,), preprocess=(how,),
    )  # fmt: skip
    return folder


# --- time -----------------------------------------------------------------------------------------------------------


def measure(folder: Path, runs: int) -> None:
    """Median of `runs` interleaved calls, each from the frame in memory to the finished float32 NCHW tensor."""
    cv2.setNumThreads(1)
    base = inputs.photograph("china").resize((1920, 1080), Image.Resampling.BICUBIC)
    photograph = np.asarray(base)
    cases = [
        (title, how, kind, np.asarray(base.resize(size)) if size else photograph)
        for title, how in (("classifier 224x224", CLASSIFY), ("letterbox 640x640", LETTERBOX))
        for kind, size in (("nv12", None), ("rgb", None), ("yuyv", (640, 480)))
    ]
    print(f"\nmilliseconds, one thread, median (least) of {runs} interleaved calls\n")
    print("| result | frame | edgepack C++ | OpenCV | Pillow | numpy |")
    print("|---|---|---:|---:|---:|---:|")
    for title, how, kind, image in cases:
        data, width, height = encode(image, kind)
        side = 224 if how is CLASSIFY else 640
        spec = float_spec(1, 3, side, side)
        variant = write(folder / "timed", how, spec, artifact.identity(spec))
        (folder / "frame").write_bytes(data)
        argv = [folder / "build" / "tests" / "time_image", variant, folder / "frame", kind, str(width), str(height)]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as process:
            calls: dict[str, Callable[[], float]] = {
                "C++": lambda process=process: ask(process),
                "OpenCV": timed(with_opencv, data, kind, width, height, how),
                "numpy": timed(with_numpy, data, kind, width, height, how, spec.shape),
            }
            if kind == "rgb":
                calls["Pillow"] = timed(with_pillow, Image.fromarray(image), how)
            taken: dict[str, list[float]] = {name: [] for name in calls}
            for run in range(runs + 3):
                for name, call in calls.items():
                    if name == "numpy" and run > 8:  # slow, and not what is compared
                        continue
                    taken[name].append(call())
        show = {name: f"{statistics.median(t[3:]):.2f} ({min(t[3:]):.2f})" for name, t in taken.items()}
        print(
            f"| {title} | {kind} {width}x{height} | {show['C++']} | {show['OpenCV']} | {show.get('Pillow', '')} "
            f"| {show['numpy']} |"
        )


def ask(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write("\n")
    return int(process.stdout.readline()) / 1e6


def timed(call: Callable[..., Any], *words: Any) -> Callable[[], float]:
    def run() -> float:
        start = time.perf_counter_ns()
        call(*words)
        return (time.perf_counter_ns() - start) / 1e6

    return run


def with_opencv(data: bytes, kind: str, width: int, height: int, how: Preprocess) -> np.ndarray:
    """The usual lines, in calls that OpenCV's C++ users make as well. It rounds to uint8 after the resize."""
    frame = np.frombuffer(data, np.uint8)
    if kind == "nv12":
        image = cv2.cvtColor(frame.reshape(height * 3 // 2, width), cv2.COLOR_YUV2RGB_NV12)
    elif kind == "yuyv":
        image = cv2.cvtColor(frame.reshape(height, width, 2), cv2.COLOR_YUV2RGB_YUYV)
    else:
        image = frame.reshape(height, width, 3)
    tall, wide = preprocess.resized_size(height, width, how.resize, how.fit)
    image = cv2.resize(image, (wide, tall), interpolation=cv2.INTER_LINEAR)
    if how.crop:
        top, left = (tall - how.crop[0]) // 2, (wide - how.crop[1]) // 2
        image = image[top : top + how.crop[0], left : left + how.crop[1]]
    if how.pad:
        top, left = (how.pad[0] - tall) // 2, (how.pad[1] - wide) // 2
        edges = (top, how.pad[0] - tall - top, left, how.pad[1] - wide - left)
        image = cv2.copyMakeBorder(image, *edges, cv2.BORDER_CONSTANT, value=how.pad_value * 3)
    mean, std = (np.resize(np.float64(values), 3) for values in (how.mean, how.std))
    normal = cv2.subtract(image, (*mean, 0), dtype=cv2.CV_32F) if mean.any() else image
    normal = cv2.multiply(normal, (*(1 / std), 1), dtype=cv2.CV_32F)
    out = np.empty((1, 3, *image.shape[:2]), np.float32)
    cv2.split(normal, list(out[0]))
    return out


def with_pillow(image: Image.Image, how: Preprocess) -> np.ndarray:
    """As torchvision does it on Pillow images: the resize filters when it shrinks, so the numbers are others."""
    tall, wide = preprocess.resized_size(image.height, image.width, how.resize, how.fit)
    image = image.resize((wide, tall), Image.Resampling.BILINEAR)
    if how.crop:
        top, left = (tall - how.crop[0]) // 2, (wide - how.crop[1]) // 2
        image = image.crop((left, top, left + how.crop[1], top + how.crop[0]))
    if how.pad:
        whole = Image.new("RGB", how.pad[::-1], (int(how.pad_value[0]),) * 3)
        whole.paste(image, ((how.pad[1] - wide) // 2, (how.pad[0] - tall) // 2))
        image = whole
    normal = (np.asarray(image, np.float32) - np.float32(how.mean)) / np.float32(how.std)
    return np.ascontiguousarray(normal.transpose(2, 0, 1))[None]


def with_numpy(data: bytes, kind: str, width: int, height: int, how: Preprocess, shape: tuple[int, ...]) -> np.ndarray:
    planes = frames.split(data, kind, width, height)
    return preprocess.apply(frames.to_rgb(planes, kind, width, height), how, shape, "float32")


if __name__ == "__main__":
    main()
