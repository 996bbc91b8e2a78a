"""Harnesses are compiled for other machines by the real compilers, and run here under the real emulator."""

from __future__ import annotations

import json
import platform
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgepack import bundle, config, converter, elf, emulator, harness, process, runtimes, toolchains
from edgepack.artifact import identity
from edgepack.errors import ToolFailed, ToolMissing, Unsupported
from edgepack.toolchains.gnu import Gnu
from edgepack.toolchains.zig import Zig
from edgepack.types import Artifact, Binding, Bound, Precision, SelfTest, Target, TensorSpec
from tests.conftest import missing, need

SPEC = TensorSpec(name="x", dtype="float32", shape=(1, 6))
RELU = "7767517\n2 2\nInput in0 0 1 in0\nReLU relu 1 1 in0 out0\n"


@dataclass(frozen=True)
class Built:
    """A harness for `target`, with a variant and golden samples that it can run."""

    target: Target
    engine: str
    folder: Path
    variant: Path
    golden: Path

    def self_test(self) -> None:
        runner = emulator.find(self.target, static=elf.needs(self.program).static)
        assert runner is not None, emulator.why_not(self.target)
        result = emulator.self_test(runner, self.folder, self.variant, self.golden, self.engine)
        assert result.passed, result.detail
        assert len(result.metrics) == 2
        wrong = np.load(self.golden / "1" / "out_0.npy") * -1
        np.save(self.golden / "1" / "out_0.npy", wrong)
        result = emulator.self_test(runner, self.folder, self.variant, self.golden, self.engine)
        assert result.passed is False and "sample 1" in result.detail

    @property
    def program(self) -> Path:
        return self.folder / "bin" / f"edgepack-{self.engine}"


Make = Callable[..., Built]


@pytest.fixture
def make(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Builds a harness as the pipeline does, below a folder of that name."""
    need("cmake", "apt install cmake ninja-build")
    monkeypatch.setenv("EDGEPACK_CACHE", str(cache))

    def build(
        target_name: str,
        engine: str,
        place: str = "a",
        layers: tuple[str, ...] = (),
        *,
        shared: bool = False,
        **changes: Any,
    ) -> Built:
        target = replace(config.load_target(target_name), **changes)
        need(f"{toolchains.TRIPLES[target.arch]}-g++", f"apt install g++-{toolchains.TRIPLES[target.arch]}")
        need(emulator.PROGRAMS[target.arch], "apt install qemu-user")
        out = tmp_path / place / "files"
        out.mkdir(parents=True)
        compiler = toolchains.select(target, engine)
        core = tmp_path / "core" / harness.CORE if shared else None
        if core is not None and not core.is_file():
            core.parent.mkdir()
            harness.build_core(target, compiler, core.parent, 2)
        spec = runtimes.spec(engine, target, layers, (Precision.FP32, Precision.FP16))
        harness.build(engine, spec, target, compiler, out, 2, core)
        return Built(target, engine, out, *write_case(tmp_path / place, engine))

    return build


def write_case(folder: Path, engine: str) -> tuple[Path, Path]:
    """A ReLU as `engine` takes it, and two golden samples."""
    files = folder / "engine"
    files.mkdir()
    surface: Binding = identity(SPEC)
    names = ("relu.onnx",)
    inputs, outputs = surface, replace(surface, name="y")
    if engine == "ncnn":
        names = ("relu.param", "relu.bin")
        (files / names[0]).write_text(RELU)
        (files / names[1]).write_bytes(b"")
        inputs = Binding(name="in0", dtype="float32", shape=(6,), perm=(0, 1))
        outputs = replace(inputs, name="out0")
    else:
        tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, SPEC.shape) for name in ("x", "y")]
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", tensors[:1], tensors[1:])
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), files / names[0])
    variant, golden = folder / "variant", folder / "golden"
    bundle.write_variant(
        variant,
        Artifact(folder=files, files=names, inputs=(inputs,), outputs=(outputs,)),
        engine=engine,
        engine_version="1",
        precision=Precision.FP32,
        bound=Bound(cosine=0.999),
        inputs=(SPEC,),
        outputs=(replace(SPEC, name="y"),),
    )
    for sample in range(2):
        (golden / str(sample)).mkdir(parents=True)
        array = np.array([[-3, -2, -1, 1, 2, 3 + sample]], np.float32)
        np.save(golden / str(sample) / "in_0.npy", array)
        np.save(golden / str(sample) / "out_0.npy", np.maximum(array, 0))
    return variant, golden


def test_an_arm_harness_is_the_same_bytes_from_every_folder_and_right_under_emulation(make: Make) -> None:
    one, two = make("rk3588", "onnxruntime", "a"), make("rk3588", "onnxruntime", "another/folder", shared=True)
    assert one.program.read_bytes() == two.program.read_bytes(), "also with a runtime that was compiled before"
    assert (one.folder / "elf.json").read_bytes() == (two.folder / "elf.json").read_bytes()
    assert sorted(p.relative_to(one.folder).as_posix() for p in one.folder.rglob("*") if p.is_file()) == [
        "bin/edgepack-onnxruntime",
        "elf.json",
        "lib/libonnxruntime.so.1.31.1",
        "licences/onnxruntime-LICENSE.txt",
        "licences/onnxruntime-ThirdPartyNotices.txt",
        "size.json",
    ]
    assert [p.name for p in one.folder.parent.iterdir() if p.name.startswith("build-")] == [], "no scratch is left"
    facts = json.loads((one.folder / "elf.json").read_text())
    assert facts["arch"] == "aarch64" and facts["glibcxx"] == "" and not facts["static"]
    assert elf.violations(one.program, one.target) == []
    one.self_test()


def test_onnxruntime_keeps_no_device_id_and_no_events(make: Make, tmp_path: Path, monkeypatch) -> None:
    built = make("rk3588", "onnxruntime")
    home = tmp_path / "home"
    home.mkdir()
    for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv(name, str(home))
    for name in ("ORT_DISABLE_TELEMETRY", "CI", "GITHUB_ACTIONS", "GITLAB_CI", "TF_BUILD"):
        monkeypatch.delenv(name, raising=False)
    built.self_test()
    assert list(home.rglob("*")) == []


def test_a_litert_harness_for_arm_ships_a_library_that_fits_the_profile(make: Make) -> None:
    built = make("rk3588", "tflite", shared=True)
    facts = json.loads((built.folder / "elf.json").read_text())
    assert facts["shipped"]["libLiteRt.so"]["glibc"] == runtimes.pin("tflite", "aarch64")["glibc"]
    assert facts["shipped"]["libLiteRt.so"]["glibcxx"] == runtimes.pin("tflite", "aarch64")["glibcxx"]
    assert facts["cpu_features"] == ["atomics"]
    assert str(built.folder.parent).encode() not in built.program.read_bytes()


def check_ncnn(built: Built) -> None:
    needs = elf.needs(built.program)
    content = built.program.read_bytes()
    assert needs.static and needs.arch == built.target.arch
    assert len(content) < 2 << 20
    assert str(built.folder.parent).encode() not in content
    assert (built.folder / "licences" / "ncnn-LICENSE.txt").is_file()
    assert list((built.folder / "lib").iterdir()) == []
    built.self_test()


@pytest.mark.slow
def test_ncnn_for_32_bit_arm_is_one_static_program_that_is_right_under_emulation(make: Make) -> None:
    check_ncnn(make("linux-armhf", "ncnn", layers=("Input", "ReLU")))


@pytest.mark.slow
def test_ncnn_for_risc_v_is_the_same_bytes_whatever_was_compiled_before_and_where(
    make: Make, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def objects() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in (cache / "builds").rglob("ncnn.dir/layer/**/*.o")}

    make("linux-riscv64", "ncnn", "before", ("Input", "ReLU"))
    before = objects()
    after = make("linux-riscv64", "ncnn", "after", ("Input", "ReLU", "Sigmoid"))
    assert before.items() < objects().items(), "a second model compiles its new layers and no other"
    one = next((cache / "builds").rglob("relu.cpp.o"))
    one.write_bytes(one.read_bytes()[:-9])
    repaired = make("linux-riscv64", "ncnn", "repaired", ("Input", "ReLU", "Sigmoid"))
    downloads = cache / "downloads"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "downloads").symlink_to(downloads)
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "empty"))
    alone = make("linux-riscv64", "ncnn", "another/folder", ("Input", "ReLU", "Sigmoid"))
    assert alone.program.read_bytes() == after.program.read_bytes() == repaired.program.read_bytes()
    check_ncnn(alone)


CORES = ("cortex-a53", "cortex-a72", "cortex-a76", "max")


def on_core(built: Built, core: str) -> SelfTest:
    target = replace(built.target, emulator_cpu=core)
    runner = emulator.find(target, static=elf.needs(built.program).static)
    assert runner is not None, emulator.why_not(target)
    return emulator.self_test(runner, built.folder, built.variant, built.golden, built.engine)


def test_onnx_runtime_for_an_old_core_runs_on_every_newer_one(make: Make) -> None:
    built = make("raspberrypi3", "onnxruntime")
    results = {core: on_core(built, core) for core in CORES}
    assert {core: result.passed for core, result in results.items()} == dict.fromkeys(CORES, True), results


@pytest.mark.slow
def test_a_static_ncnn_for_any_aarch64_runs_on_old_and_new_cores_and_needs_nothing_but_a_kernel(make: Make) -> None:
    built = make("linux-aarch64", "ncnn", layers=("Input", "ReLU"))
    results = {core: on_core(built, core) for core in CORES}
    assert {core: result.passed for core, result in results.items()} == dict.fromkeys(CORES, True), results
    needs = elf.needs(built.program)
    assert needs.static and needs.interpreter == "" and needs.libraries == ()
    assert elf.page_size(built.program) >= 16384, "Android 15 has pages of 16 KiB"


@pytest.mark.slow
def test_a_small_ncnn_is_right_and_says_which_instructions_an_older_cpu_lacks(make: Make) -> None:
    built = make("rk3588", "ncnn", layers=("Input", "ReLU"), size="small", static=False)
    assert built.program.stat().st_size < 400_000
    assert on_core(built, "cortex-a76").passed
    refused = on_core(built, "cortex-a53")
    assert refused.passed is False
    assert "compiled for a CPU with asimddp, asimdhp, which this one lacks" in refused.detail


def test_litert_is_not_even_loaded_by_a_cpu_without_lse_atomics(make: Make) -> None:
    refused = on_core(make("rk3588", "tflite"), "cortex-a72")
    assert refused.passed is False and "compiled for a CPU with atomics, which this one lacks" in refused.detail


# A libonnxruntime.so of the user's own


STUB = """
#include <stddef.h>
static const char* version(void) { return "%s"; }
static void* nothing(void) { return NULL; }
static void* refuse(void) { return "x"; }
static const char* words(const void* status) { return "Could not find an implementation for Relu(14) node"; }
static const void* const* api(unsigned level) {
  static const void* table[200];
  for (int i = 0; i < 200; ++i) table[i] = (const void*)nothing;
  table[2] = (const void*)words;
  table[7] = (const void*)refuse;
  return table;
}
struct base { const void* const* (*api)(unsigned); const char* (*version)(void); };
const struct base* OrtGetApiBase(void) { static const struct base b = {api, version}; return &b; }
"""


def stub(folder: Path, compiler: str, version: str, name: str = "OrtGetApiBase") -> Path:
    """A library that says it is ONNX Runtime, and can load no model: as one that was built without an operator."""
    need(compiler, "apt install gcc g++-aarch64-linux-gnu")
    (folder / "stub.c").write_text(STUB.replace("%s", version).replace("OrtGetApiBase", name))
    (folder / "stub.map").write_text(f"VERS_{version} {{ global: {name}; local: *; }};\n")
    path = folder / f"libonnxruntime-{version}.so"
    argv = [compiler, "-shared", "-fPIC", "stub.c", "-o", str(path), "-Wl,--version-script=stub.map"]
    assert process.run(argv, cwd=folder).returncode == 0
    return path


def test_a_library_of_the_users_own_ships_instead_of_the_wheels(make: Make, tmp_path: Path) -> None:
    wheels = next(iter(runtimes.spec("onnxruntime", config.load_target("rk3588")).libraries.values()))
    mine = tmp_path / "mine.so"
    shutil.copyfile(wheels, mine)
    built = make("rk3588", "onnxruntime", libraries={"onnxruntime": str(mine)})
    assert (built.folder / "lib" / "libonnxruntime.so.1.31.1").read_bytes() == mine.read_bytes()
    sizes = json.loads((built.folder / "size.json").read_text())
    assert sizes["full"] == sizes["total"], "a copy of the wheel's library is no smaller"
    built.self_test()


def test_a_reduced_library_that_lacks_an_operator_fails_the_self_test_in_its_own_words(
    make: Make, tmp_path: Path
) -> None:
    mine = stub(tmp_path, "aarch64-linux-gnu-gcc", "1.31.1")
    built = make("rk3588", "onnxruntime", libraries={"onnxruntime": str(mine)})
    result = on_core(built, "cortex-a76")
    assert result.passed is False and "Could not find an implementation for Relu(14)" in result.detail
    sizes = json.loads((built.folder / "size.json").read_text())
    assert sizes["total"] < sizes["full"] == sizes["harness"] + 25265040


@pytest.mark.parametrize(
    ("compiler", "version", "name", "why"),
    [
        (
            "aarch64-linux-gnu-gcc",
            "1.30.0",
            "OrtGetApiBase",
            "is version 1.30.0, but variants are verified with 1.31.1",
        ),
        ("gcc", "1.31.1", "OrtGetApiBase", "is for x86_64, the target is aarch64"),
        ("aarch64-linux-gnu-gcc", "1.31.1", "SomethingElse", "is not ONNX Runtime"),
    ],
)
def test_a_library_of_another_version_or_machine_is_refused(
    tmp_path: Path, compiler: str, version: str, name: str, why: str
) -> None:
    if compiler == "gcc" and platform.machine() != "x86_64":
        pytest.skip("this machine's own gcc makes the right architecture")
    mine = stub(tmp_path, compiler, version, name)
    target = replace(config.load_target("rk3588"), libraries={"onnxruntime": str(mine)})
    with pytest.raises(Unsupported, match=why):
        runtimes.spec("onnxruntime", target)


def test_a_file_that_is_no_library_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.so").write_text("not a library")
    target = replace(config.load_target("rk3588"), libraries={"onnxruntime": str(tmp_path / "mine.so")})
    with pytest.raises(Unsupported, match=r"mine\.so .* is no shared library"):
        runtimes.spec("onnxruntime", target)


def test_a_program_that_needs_more_than_the_profile_promises_is_not_accepted(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("aarch64-linux-gnu-g++", "apt install g++-aarch64-linux-gnu")
    new = config.load_target("rk3588")
    compiler = Gnu().locate(new, static=False)
    assert compiler is not None
    old = replace(new, name="old-board", libc_version="2.28")
    (tmp_path / "x").mkdir()
    with pytest.raises(Unsupported, match=r"glibc 2\.3\d, old-board promises 2\.28"):
        harness.build("onnxruntime", runtimes.spec("onnxruntime", old), old, compiler, tmp_path / "x", 2)


def test_a_compile_error_is_one_sentence_with_the_compilers_own_line_and_a_kept_log(
    make: Make, tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "broken"
    source.mkdir()
    (source / "main.cpp").write_text("int main() { return nothing_of_that_name; }\n")
    lines = ["cmake_minimum_required(VERSION 3.18)", "project(x CXX)", "add_executable(edgepack-onnxruntime main.cpp)"]
    (source / "CMakeLists.txt").write_text("\n".join(lines))
    monkeypatch.setattr(harness, "data", lambda name: source)
    need("aarch64-linux-gnu-g++", "apt install g++-aarch64-linux-gnu")
    with pytest.raises(ToolFailed, match="nothing_of_that_name") as caught:
        make("rk3588", "onnxruntime")
    assert caught.value.log is not None and "cmake --build" in caught.value.log.read_text()


def test_without_cmake_the_message_says_how_to_get_it(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    which = shutil.which
    monkeypatch.setattr(harness.shutil, "which", lambda name, **more: None if name == "cmake" else which(name, **more))
    with pytest.raises(ToolMissing) as caught:
        make("rk3588", "onnxruntime")
    assert "pip install cmake" in caught.value.hint


def test_zig_compiles_the_kernels_that_ncnn_asks_for_by_march(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(cache))
    target = config.load_target("linux-aarch64")
    compiler = Zig().locate(target, static=False)
    if compiler is None:
        missing("zig has no wheel for this machine")
    assert compiler is not None
    try:
        Zig().prepare(compiler)
    except ToolMissing as error:
        missing(f"zig can't be fetched ({error.message})")
    source = tmp_path / "kernel.c"
    source.write_text(
        "#include <arm_neon.h>\n"
        "float16x8_t f(float16x8_t s, float16x8_t a, float16x8_t b) { return vfmaq_f16(s, a, b); }\n"
        "int32x4_t g(int32x4_t s, int8x16_t a, int8x16_t b) { return vdotq_s32(s, a, b); }\n"
    )
    cc = next(a for a in compiler.cmake_args if "C_COMPILER=" in a).partition("=")[2]
    env = {**process.clean_environment(), **compiler.env}

    def compiles(*flags: str) -> bool:
        argv = [cc, *flags, "-O2", "-c", str(source), "-o", str(tmp_path / "kernel.o")]
        return process.run(argv, env=env).returncode == 0

    assert compiles("-march=armv8.2-a+fp16+dotprod")
    assert elf.needs(tmp_path / "kernel.o").arch == "aarch64"
    assert not compiles("-march=armv8-a"), "the base CPU has no such instructions: the flag must have had an effect"


def test_an_environment_of_zig_names_the_program_that_the_toolchain_uses(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(cache))
    (tmp_path / "out").mkdir()
    try:
        found = converter.convert("zig", {}, tmp_path / "out")
    except ToolMissing as error:
        missing(f"zig can't be fetched ({error.message})")
    assert found["version"].startswith("0.") and Path(found["zig"]).is_file()
