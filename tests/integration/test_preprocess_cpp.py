"""Pre-processing in C++ gives numpy's numbers: `run --image` of the null engine against `edgepack.preprocess.apply`.

The engine gives its input back, so what comes out is the tensor that edgepack_set_image made, through the engine's own
layout and type.
"""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgepack import artifact, bundle, emulator, frames, preprocess
from edgepack.types import Artifact, Binding, Bound, Preprocess, TensorSpec
from tests.conftest import ROOT, need
from tests.models import tiny_classifier

CASES = 100
YUV = {"bt601": (False, False), "bt601-full": (False, True), "bt709": (True, False), "bt709-full": (True, True)}
FLAGS = {"aarch64": "-march=armv8-a", "armhf": "-march=armv7-a+simd -mfloat-abi=hard"}
TRIPLES = {"aarch64": "aarch64-linux-gnu", "armhf": "arm-linux-gnueabihf"}
EMULATORS = {"aarch64": "qemu-aarch64", "armhf": "qemu-arm"}


@dataclass(frozen=True)
class Machine:
    """A build of the null engine and its unit tests, and the words that start a program of it."""

    folder: Path
    start: tuple[str, ...] = ()
    exact: bool = True  # 32-bit NEON has no division: there 1 / std is multiplied with

    def run(self, *words: Any) -> subprocess.CompletedProcess[str]:
        argv = [*self.start, *map(str, words)]
        return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture(scope="module", params=["native", "aarch64", "armhf"])
def machine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """This machine, and the two ARM ones (NEON) under emulation."""
    need("cmake", "apt install cmake")
    folder = tmp_path_factory.mktemp(f"cpp_{request.param}")
    options: list[Any] = ["-DCMAKE_BUILD_TYPE=Release", "-DEDGEPACK_BACKEND=null", "-DEDGEPACK_ENGINE_VERSION=1"]
    start: tuple[str, ...] = ()
    if request.param == "native":
        need("g++", "apt install g++")
    else:
        triple = TRIPLES[request.param]
        start = (need(EMULATORS[request.param], "apt install qemu-user"),)
        options += [
            "-DCMAKE_SYSTEM_NAME=Linux",
            f"-DCMAKE_SYSTEM_PROCESSOR={request.param}",
            f"-DCMAKE_C_COMPILER={need(f'{triple}-gcc', f'apt install g++-{triple}')}",
            f"-DCMAKE_CXX_COMPILER={need(f'{triple}-g++', f'apt install g++-{triple}')}",
            f"-DCMAKE_CXX_FLAGS={FLAGS[request.param]}",
            "-DEDGEPACK_STATIC=ON",
            "-DCMAKE_EXE_LINKER_FLAGS=-static",
        ]
    made = subprocess.run(
        ["cmake", "-S", ROOT / "cpp_runtime", "-B", folder, *options], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    made = subprocess.run(
        ["cmake", "--build", folder, "--parallel", "2", "--target", "edgepack-null", "test_image"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout[-4000:] + made.stderr[-4000:]
    return Machine(folder, start, request.param != "armhf")


@dataclass(frozen=True)
class Case:
    """One picture, one declaration, one input and how the engine holds it."""

    how: Preprocess
    spec: TensorSpec
    binding: Binding
    format: str
    yuv: str
    width: int
    height: int
    stride: int | None
    frame: bytes

    def expected(self) -> np.ndarray:
        planes = frames.split(self.frame, self.format, self.width, self.height, self.stride)
        bt709, full_range = YUV[self.yuv]
        image = frames.to_rgb(planes, self.format, self.width, self.height, bt709=bt709, full_range=full_range)
        source = preprocess.apply(image, self.how, self.spec.shape, self.spec.dtype)
        return artifact.from_engine(artifact.to_engine(source, self.binding), self.binding, self.spec)


def test_a_hundred_pictures_of_every_kind_give_numpys_numbers(machine: Machine, tmp_path: Path) -> None:
    for seed in range(CASES):
        case = some_case(np.random.default_rng(seed))
        got = run(machine, tmp_path / str(seed), case)
        expected = case.expected()

        said = f"seed {seed}: {case.how} {case.spec} {case.binding} {case.format} {case.width}x{case.height}"
        assert got.dtype == expected.dtype and got.shape == expected.shape, said
        off = np.abs(got.astype(np.float64) - expected.astype(np.float64)).max()
        scale = float(np.abs(expected.astype(np.float64)).max())
        step = case.binding.scale or (1.0 if got.dtype.kind in "iu" else 0.0)
        if got.dtype == np.float16:
            step = scale * 2.0**-10
        assert off <= max(step * 1.000001, 1e-6 * scale), said
        if machine.exact:
            np.testing.assert_array_equal(got, expected, err_msg=said)


@pytest.mark.parametrize("yuv", list(YUV))
def test_every_pair_of_chroma_values_becomes_numpys_colour(machine: Machine, tmp_path: Path, yuv: str) -> None:
    luma = np.random.default_rng(1).integers(0, 256, (512, 512), dtype=np.uint8)
    u, v = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    frame = luma.tobytes() + np.stack([u, v], axis=-1).tobytes()
    spec = TensorSpec(name="x", dtype="uint8", shape=(512, 512, 3))
    case = Case(Preprocess(layout="HWC"), spec, artifact.identity(spec), "nv12", yuv, 512, 512, None, frame)

    np.testing.assert_array_equal(run(machine, tmp_path, case), case.expected())


def test_the_unit_tests_of_images_pass_with_neon_under_emulation(machine: Machine, tmp_path: Path) -> None:
    done = machine.run(machine.folder / "tests" / "test_image", tmp_path)

    assert done.returncode == 0, done.stderr
    if machine.start:
        assert "with NEON" in done.stdout


def test_a_built_harness_makes_of_a_frame_what_it_makes_of_numpys_tensor(edgepack, tmp_path: Path) -> None:
    """From preprocess.toml through the bundle to the device's command; LiteRT holds the input in another axis order."""
    need("aarch64-linux-gnu-g++", "apt install g++-aarch64-linux-gnu")
    need("qemu-aarch64", "apt install qemu-user")
    how = Preprocess(resize=(16, 16), fit="inside", pad=(16, 16), pad_value=(114.0,), mean=(120.0,), std=(58.0,))
    (tmp_path / "p.toml").write_text(
        '[input.image]\nresize = [16, 16]\nfit = "inside"\npad = [16, 16]\npad_value = 114\nmean = 120\nstd = 58\n'
    )
    called = edgepack(
        "build", tiny_classifier(tmp_path / "tiny.onnx"), "--target", "rk3588", "--engine", "onnxruntime",
        "--engine", "tflite", "--precision", "fp32", "--preprocess", tmp_path / "p.toml", "-o", tmp_path / "b",
        "--json",
    )  # fmt: skip
    assert called.code == 0, called.err
    opened = bundle.open_bundle(Path(called.json["bundle"]))
    frame = some_frame(np.random.default_rng(4), 60 * 40 * 3 // 2)
    (tmp_path / "frame").write_bytes(frame)
    rgb = frames.to_rgb(frames.split(frame, "nv12", 60, 40), "nv12", 60, 40)
    np.save(tmp_path / "in_0.npy", preprocess.apply(rgb, how, (1, 3, 16, 16), "float32"))
    (tmp_path / "outs").mkdir()

    for engine in ("onnxruntime", "tflite"):
        outputs = []
        for words in (["--inputs", tmp_path], ["--image", tmp_path / "frame", "--format", "nv12", "--size", "60x40"]):
            runner = emulator.find(bundle.target_from(opened.manifest["target"]), static=False)
            assert runner is not None
            variant = opened.variant(f"{engine}-fp32")
            argv = [opened.path / "bin" / f"edgepack-{engine}", "run", "--variant", variant]
            done = runner.run([str(word) for word in (*argv, *words, "--outputs", tmp_path / "outs")], 120)
            assert done.returncode == 0, done.stderr
            outputs.append(np.load(tmp_path / "outs" / "out_0.npy"))
        np.testing.assert_array_equal(*outputs)


def run(machine: Machine, folder: Path, case: Case) -> np.ndarray:
    """What the harness makes of a case."""
    (folder / "out").mkdir(parents=True)
    (folder / "model.none").write_bytes(b"")
    (folder / "frame").write_bytes(case.frame)
    bundle.write_variant(
        folder / "variant",
        Artifact(folder=folder, files=("model.none",), inputs=(case.binding,), outputs=(case.binding,)),
        engine="null", engine_version="1", precision="fp32", bound=Bound(cosine=0.999),
        inputs=(case.spec,), outputs=(case.spec,), preprocess=(case.how,),
    )  # fmt: skip
    stride = ["--stride", case.stride] if case.stride else []
    done = machine.run(
        machine.folder / "edgepack-null", "run", "--variant", folder / "variant", "--outputs", folder / "out",
        "--image", folder / "frame", "--format", case.format, "--size", f"{case.width}x{case.height}",
        "--yuv", case.yuv, *stride,
    )  # fmt: skip
    assert done.returncode == 0, f"{case}: {done.stderr}"
    made: np.ndarray = np.load(folder / "out" / "out_0.npy", allow_pickle=False)
    return made


def some_case(random: np.random.Generator) -> Case:
    """A case drawn by `random`: odd sizes and paddings, every kind, layout and type come up."""
    pick = random.choice
    kind = str(pick(frames.FORMATS))
    width, height = (int(pick([1, 2, 3, 17, 31, 64, 100, 131])) for _ in range(2))
    if kind in frames.YUV:
        width, height = 2 * width, 2 * height
    row = frames.plane_sizes(kind, width, height)[0][1]
    stride = int(pick([row, row + 2, row + 30])) if pick([True, False]) else None
    how = some_declaration(random, height, width)
    tall, wide = result_size(how, height, width)
    channels = 1 if how.color == "GRAY" else 3
    lengths = {"N": 1, "C": channels, "H": tall, "W": wide}
    shape = tuple(lengths[axis] for axis in how.layout)
    dtype = str(pick(["float32", "float32", "float32", "uint8", "int8", "float16", "int32", "float64"]))
    spec = TensorSpec(name="x", dtype=dtype, shape=shape)
    return Case(
        how, spec, some_binding(random, spec), kind, str(pick(list(YUV))), width, height, stride,
        some_frame(random, sum(step_rows(kind, width, height, stride))),
    )  # fmt: skip


def some_declaration(random: np.random.Generator, height: int, width: int) -> Preprocess:
    pick = random.choice
    color = str(pick(["RGB", "BGR", "GRAY"]))
    count = 1 if color == "GRAY" else int(pick([1, 3]))
    layout = str(pick(["NCHW", "NHWC", "CHW", "HWC", *(["NHW", "HW"] if color == "GRAY" else [])]))
    kind = str(pick(["none", "pair", "short", "inside", "height"]))
    pair = (int(pick([1, 5, 24, 33, 96])), int(pick([1, 7, 24, 40, 111])))
    resize = {"none": None, "short": int(pick([1, 9, 32]))}.get(kind, pair)
    fit = kind if kind in ("inside", "height") else "stretch"
    tall, wide = preprocess.resized_size(height, width, resize, fit)
    crop = None
    if pick([True, False]):
        crop = (max(1, min(tall, 200) - int(pick([0, 1, 4]))), max(1, min(wide, 200) - int(pick([0, 3, 6]))))
        tall, wide = crop
    pad = (tall + int(pick([0, 1, 6])), wide + int(pick([0, 5, 8]))) if pick([True, False]) else None
    values = random.uniform(0, 255, (2, count)).round(3).tolist()
    return Preprocess(
        layout=layout, color=color, resize=resize, fit=fit, method=str(pick(["bilinear", "nearest"])), crop=crop,
        pad=pad, pad_value=tuple(values[0]) if pad else (0.0,), pad_place=str(pick(["center", "top_left"])),
        mean=tuple(values[1]), std=tuple(random.uniform(1, 128, count).tolist()),
    )  # fmt: skip


def result_size(how: Preprocess, height: int, width: int) -> tuple[int, int]:
    return how.pad or how.crop or preprocess.resized_size(height, width, how.resize, how.fit)


def some_binding(random: np.random.Generator, spec: TensorSpec) -> Binding:
    """The source's own, other axes, or INT8 inside."""
    perm = tuple(int(axis) for axis in random.permutation(len(spec.shape)))
    if random.integers(3) == 0:
        return artifact.identity(spec)
    shape = tuple(spec.shape[axis] for axis in perm)
    if random.integers(2) == 0:
        return Binding(name="e", dtype=spec.dtype, shape=shape, perm=perm)
    dtype, zero = (("int8", -3), ("uint8", 120))[int(random.integers(2))]
    return Binding(name="e", dtype=dtype, shape=shape, perm=perm, scale=0.0371, zero_point=zero)


def step_rows(format: str, width: int, height: int, stride: int | None) -> list[int]:
    """Bytes of each plane."""
    sizes = frames.plane_sizes(format, width, height)
    halves = [1, 2, 2] if format == "i420" else [1, 1]
    return [rows * (stride // half if stride else row) for (rows, row), half in zip(sizes, halves, strict=False)]


def some_frame(random: np.random.Generator, size: int) -> bytes:
    """Noise, which is harder than a photograph, or waves with the extremes in them."""
    if random.integers(2) == 0:
        return random.integers(0, 256, size, dtype=np.uint8).tobytes()
    waves = 127.5 + 140 * np.sin(np.arange(size) * random.uniform(0.001, 0.3))
    return np.clip(waves, 0, 255).astype(np.uint8).tobytes()
