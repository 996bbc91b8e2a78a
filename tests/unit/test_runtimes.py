"""Engine libraries are the pinned files or nothing, and ncnn's layers are complete."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgepack import config, ncnn_source, runtimes
from edgepack.errors import IntegrityError, ToolMissing, Unsupported, VariantError
from edgepack.types import Precision, Target

CONTENT = b"a wheel, as far as fetch cares"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = "thing-1.0-py3-none-any.whl"


@pytest.fixture
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "wheelhouse"
    folder.mkdir()
    monkeypatch.setenv("EDGEPACK_WHEELHOUSE", str(folder))
    monkeypatch.setenv("EDGEPACK_OFFLINE", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    monkeypatch.delenv("UV_FIND_LINKS", raising=False)
    return folder


def fetch(root: Path) -> Path:
    return runtimes.fetch("thing", "1.0", FILE, DIGEST, root)


def test_every_pin_has_a_digest_and_no_address() -> None:
    text = runtimes.PINS.read_text()
    assert "://" not in text
    for engine, pins in runtimes.pins().items():
        for arch, entry in pins.items():
            if not isinstance(entry, dict):
                continue
            assert ("reason" in entry) != ("sha256" in entry), (engine, arch)
            if "sha256" in entry:
                members = [*entry["licences"].values(), *filter(None, [entry.get("library")])]
                assert all(re.fullmatch("[0-9a-f]{64}", x["sha256"]) for x in (entry, *members)), (engine, arch)
                assert entry["licences"], "what ships has a licence"


@pytest.mark.parametrize("arch", ["aarch64", "x86_64", "armhf", "riscv64"])
@pytest.mark.parametrize("engine", ["onnxruntime", "tflite", "ncnn"])
def test_every_engine_has_a_pin_or_a_reason_for_every_architecture(engine: str, arch: str) -> None:
    entry = runtimes.pin(engine, arch)
    assert entry.get("sha256") or ("none for" not in entry["reason"] and entry["remedy"])


def test_a_file_in_the_wheelhouse_is_used_without_a_network_and_kept(wheelhouse: Path, tmp_path: Path) -> None:
    (wheelhouse / FILE).write_bytes(CONTENT)
    path = fetch(tmp_path / "cache")
    assert path.read_bytes() == CONTENT
    (wheelhouse / FILE).unlink()
    assert fetch(tmp_path / "cache") == path


def test_a_find_links_folder_of_pip_serves_as_a_wheelhouse(
    wheelhouse: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / FILE).write_bytes(CONTENT)
    monkeypatch.setenv("PIP_FIND_LINKS", f"https://example.invalid/x {links.as_uri()}")
    assert fetch(tmp_path / "cache").read_bytes() == CONTENT


def test_a_file_that_was_damaged_in_the_cache_is_fetched_again(wheelhouse: Path, tmp_path: Path) -> None:
    (wheelhouse / FILE).write_bytes(CONTENT)
    fetch(tmp_path / "cache").write_bytes(CONTENT[:-1])
    assert fetch(tmp_path / "cache").read_bytes() == CONTENT


def test_another_file_under_the_pinned_name_is_refused_and_nothing_is_kept(wheelhouse: Path, tmp_path: Path) -> None:
    (wheelhouse / FILE).write_bytes(CONTENT[:-1])
    with pytest.raises(IntegrityError, match="SHA-256"):
        fetch(tmp_path / "cache")
    assert [p.name for p in (tmp_path / "cache").rglob("*") if p.is_file() and p.suffix != ".lock"] == []


def test_a_file_that_is_nowhere_says_where_to_put_it(wheelhouse: Path, tmp_path: Path) -> None:
    with pytest.raises(ToolMissing) as caught:
        fetch(tmp_path / "cache")
    assert FILE in caught.value.message and "EDGEPACK_WHEELHOUSE" in caught.value.hint


def test_members_are_regular_files_only(tmp_path: Path) -> None:
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("good", b"bytes")
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
    assert runtimes.read_member(wheel, "good") == b"bytes"
    sdist = tmp_path / "a.tar.gz"
    with tarfile.open(sdist, "w:gz") as tar:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    for path, name in ((wheel, "link"), (sdist, "link"), (wheel, "absent"), (sdist, "absent")):
        with pytest.raises(IntegrityError, match=name):
            runtimes.read_member(path, name)


def test_a_truncated_archive_is_an_integrity_error(tmp_path: Path) -> None:
    for name in ("a.whl", "a.tar.gz"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 or not")
        with pytest.raises(IntegrityError, match=name):
            runtimes.read_member(tmp_path / name, "x")


def test_a_cpu_without_lse_atomics_has_no_litert_and_the_reason_says_so() -> None:
    found = runtimes.problem("tflite", config.load_target("raspberrypi4"))
    assert found is not None and "atomics" in found[0] and "ncnn" in found[1]
    assert runtimes.problem("tflite", config.load_target("rk3588")) is None


def test_a_libc_or_libstdcxx_below_the_librarys_need_is_told_with_both_numbers() -> None:
    target = replace(config.load_target("rk3588"), libc_version="2.31")
    found = runtimes.problem("tflite", target)
    assert found is not None and "2.34" in found[0] and "2.31" in found[0]
    found = runtimes.problem("tflite", replace(target, libc_version="2.36", glibcxx="3.4.28"))
    assert found is not None and "3.4.30" in found[0] and "3.4.28" in found[0]


def test_a_target_without_glibc_has_only_the_engine_that_is_compiled() -> None:
    target = config.load_target("android-arm64")
    for engine in ("onnxruntime", "tflite"):
        found = runtimes.problem(engine, target)
        assert found is not None and "bionic" in found[0]
    assert runtimes.problem("ncnn", target) is None


def test_an_engine_without_a_library_is_unsupported_before_anything_is_fetched(wheelhouse: Path) -> None:
    with pytest.raises(Unsupported, match="32-bit Arm"):
        runtimes.spec("onnxruntime", config.load_target("linux-armhf"), ())
    with pytest.raises(Unsupported, match="nothing"):
        runtimes.spec("nothing", config.load_target("linux-armhf"), ())


# ncnn's source tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """ncnn in small: Conv makes an activation in a header; on x86 it also calls Gemm's own code."""
    layer = tmp_path / "src" / "layer"
    for folder in ("arm", "x86"):
        (layer / folder).mkdir(parents=True)
    names = ["Conv", "ConvDepthWise", "Gemm", "ReLU", "Attention", "Softmax", "Old", "Deep", "Crop", "Quantize"]
    names += ncnn_source.IMPLICIT
    lines = [f"ncnn_add_layer({name}{' OFF' if name == 'Old' else ''})" for name in names]
    (tmp_path / "src" / "CMakeLists.txt").write_text("\n".join(lines))
    for name in names:
        (layer / f"{name.lower()}.cpp").write_text("")
    (layer / "fused.h").write_text("x = ncnn::create_layer_cpu(ncnn::LayerType::ReLU);")
    (layer / "conv.cpp").write_text('#include "fused.h"\n')
    (layer / "arm" / "convdepthwise_arm.cpp").write_text("op = create_layer_cpu(LayerType::Conv);")
    (layer / "x86" / "conv_x86.cpp").write_text('#include "conv_int8.h"\n')
    (layer / "x86" / "conv_int8.h").write_text("namespace Gemm_x86_utility { void f(); }")
    (layer / "attention.cpp").write_text("create_layer(ncnn::LayerType::Softmax)")
    (layer / "winograd.h").write_text("copy_cut_border(top, out, 0, 1, 0, 1, opt);")
    (layer / "fused_activation.h").write_text("create_layer_cpu(ncnn::LayerType::Softmax);")
    (layer / "deep.cpp").write_text(
        '#include "winograd.h"\n#include "fused_activation.h"\nquantize_to_int8(a, b, c, opt);'
    )
    return tmp_path


Close = Callable[..., set[str]]


@pytest.fixture
def close(tree: Path) -> Close:
    return lambda arch, *names: set(ncnn_source.close(tree, arch, names)) - set(ncnn_source.IMPLICIT)


def test_layers_that_a_layers_code_makes_are_kept_also_through_headers(close: Close) -> None:
    assert close("aarch64", "Conv") == {"Conv", "ReLU"}
    assert close("aarch64", "ConvDepthWise") == {"ConvDepthWise", "Conv", "ReLU"}
    assert close("x86_64", "ConvDepthWise") == {"ConvDepthWise"}, "only Arm's version makes a Conv"
    assert close("x86_64", "Attention") == {"Attention", "Softmax"}


def test_a_layer_whose_functions_are_called_is_kept_or_x86_does_not_link(close: Close) -> None:
    assert close("x86_64", "Conv") == {"Conv", "ReLU", "Gemm"}


def test_layers_that_ncnn_makes_by_itself_are_always_kept(tree: Path) -> None:
    assert set(ncnn_source.IMPLICIT) < ncnn_source.close(tree, "aarch64", ["Gemm"])


def test_layers_behind_helper_functions_are_kept_and_int8s_only_with_int8(close: Close, tree: Path) -> None:
    assert close("aarch64", "Deep") == {"Deep", "Crop", "Softmax", "Quantize"}
    without_int8 = ncnn_source.close(tree, "aarch64", ["Deep"], int8=False)
    assert "Quantize" not in without_int8
    assert "Quantize" in ncnn_source.close(tree, "aarch64", ["Deep", "Quantize"], int8=False), "it was asked for"


def test_no_layers_at_all_means_every_layer(tree: Path) -> None:
    assert ncnn_source.close(tree, "aarch64", []) == set(ncnn_source.known_layers(tree))


def test_a_layer_that_this_ncnn_has_not_is_an_error_with_its_name(tree: Path) -> None:
    with pytest.raises(VariantError, match="Warp9"):
        ncnn_source.close(tree, "aarch64", ["Conv", "Warp9"])


def test_every_layer_is_switched_on_or_off_by_name(tree: Path) -> None:
    given = ncnn_source.arguments(config.load_target("rk3588"), ["Conv", "Old"])
    flags = ncnn_source.layer_arguments(given, tree, "aarch64")
    assert {"-DWITH_LAYER_conv=ON", "-DWITH_LAYER_old=ON", "-DWITH_LAYER_gemm=OFF"} <= set(flags)
    assert not [flag for flag in flags if "EDGEPACK_NCNN_LAYERS" in flag]


def small() -> Target:
    return replace(config.load_target("rk3588"), size="small")


def test_a_small_program_makes_no_activation_and_no_winograd_that_its_models_dont_name(tree: Path) -> None:
    plain = ncnn_source.layer_arguments(ncnn_source.arguments(small(), ["Deep"]), tree, "aarch64")
    assert {"-DWITH_LAYER_softmax=OFF", "-DWITH_LAYER_crop=OFF", "-DEDGEPACK_NCNN_WINOGRAD=OFF"} <= set(plain)
    asked = ncnn_source.arguments(small(), ["Deep", "Softmax", ncnn_source.WINOGRAD])
    asked = tuple(ncnn_source.layer_arguments(asked, tree, "aarch64"))
    assert {"-DWITH_LAYER_softmax=ON", "-DWITH_LAYER_crop=ON", "-DEDGEPACK_NCNN_WINOGRAD=ON"} <= set(asked)
    fast = ncnn_source.arguments(config.load_target("rk3588"), ["Deep"])
    assert "-DNCNN_BATCH=ON" in fast and "-DNCNN_BATCH=OFF" in plain
    assert "-DNCNN_BATCH=ON" in ncnn_source.arguments(small(), ["Reshape", ncnn_source.BATCH])
    assert "-DEDGEPACK_NCNN_WINOGRAD=ON" in fast and "-DEDGEPACK_SIZE=fast" in fast


def test_a_small_program_has_no_code_for_precisions_that_are_not_built() -> None:
    floats = ncnn_source.arguments(small(), ["Conv"], [Precision.FP32, Precision.FP16])
    single = ncnn_source.arguments(small(), ["Conv"], [Precision.FP32])
    int8 = ncnn_source.arguments(small(), ["Conv"], [Precision.FP32, Precision.INT8])
    assert {"-DNCNN_INT8=OFF", "-DNCNN_ARM82=ON"} <= set(floats)
    assert {"-DNCNN_INT8=OFF", "-DNCNN_ARM82=OFF", "-DNCNN_ARM82DOT=OFF"} <= set(single)
    assert {"-DNCNN_INT8=ON", "-DNCNN_ARM82DOT=ON"} <= set(int8)
    assert ncnn_source.used_features(small(), [Precision.FP32]) == ()


def test_fast_programs_share_their_layers_whatever_precisions_and_layers_are_built() -> None:
    target = config.load_target("rk3588")
    one = ncnn_source.arguments(target, ["Conv"], [Precision.FP32])
    two = ncnn_source.arguments(target, ["Conv", "Gemm"], list(Precision))
    assert ncnn_source.shared_arguments(one) == ncnn_source.shared_arguments(two)


def test_kernels_are_compiled_for_the_profiles_cpu_and_no_other() -> None:
    new = ncnn_source.arguments(config.load_target("rk3588"), [])
    old = ncnn_source.arguments(config.load_target("raspberrypi4"), [])
    assert {"-DNCNN_ARM82=ON", "-DNCNN_ARM82DOT=ON", "-DNCNN_ARM82FP16FML=OFF", "-DNCNN_BF16=OFF"} <= set(new)
    assert {"-DNCNN_ARM82=OFF", "-DNCNN_ARM82DOT=OFF"} <= set(old)
    assert ncnn_source.used_features(config.load_target("rk3588")) == ("asimddp", "asimdhp")
    assert ncnn_source.used_features(config.load_target("raspberrypi4")) == ()
    floating = replace(config.load_target("rk3588"), precisions=(Precision.FP32,))
    assert "-DNCNN_INT8=OFF" in ncnn_source.arguments(floating, [])


def test_an_instruction_set_is_off_where_one_that_it_builds_on_is_missing() -> None:
    target = replace(config.load_target("linux-x86_64"), cpu_features=("avx", "avx2", "avx512f"))
    flags = ncnn_source.arguments(target, [])
    assert {"-DNCNN_AVX=ON", "-DNCNN_FMA=OFF", "-DNCNN_AVX2=OFF", "-DNCNN_AVX512=OFF"} <= set(flags)
    assert ncnn_source.used_features(target) == ("avx",)


def write_sdist(path: Path, *entries: tarfile.TarInfo) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name in ("ncnn-1/CMakeLists.txt", "ncnn-1/src/CMakeLists.txt", "ncnn-1/python/setup.py"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"#"))
        for info in entries:
            tar.addfile(info)
    return path


def test_the_sdist_is_unpacked_without_what_is_not_compiled(tmp_path: Path) -> None:
    tree = ncnn_source.unpack(write_sdist(tmp_path / "n.tar.gz"), tmp_path / "out")
    assert tree == tmp_path / "out" / "ncnn-1"
    assert sorted(p.relative_to(tree).as_posix() for p in tree.rglob("*") if p.is_file()) == [
        "CMakeLists.txt",
        "src/CMakeLists.txt",
    ]


@pytest.mark.parametrize("name", ["../out.txt", "ncnn-1/src/../../../out.txt", "/tmp/out.txt"])
def test_an_sdist_with_a_path_that_leaves_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(IntegrityError, match="leaves"):
        ncnn_source.unpack(write_sdist(tmp_path / "n.tar.gz", tarfile.TarInfo(name)), tmp_path / "out")


def test_an_sdist_with_a_link_is_refused(tmp_path: Path) -> None:
    link = tarfile.TarInfo("ncnn-1/src/link.cpp")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    with pytest.raises(IntegrityError, match="regular"):
        ncnn_source.unpack(write_sdist(tmp_path / "n.tar.gz", link), tmp_path / "out")


def test_an_archive_that_is_no_ncnn_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "n.tar.gz", "w:gz"):
        pass
    with pytest.raises(IntegrityError, match="not ncnn"):
        ncnn_source.unpack(tmp_path / "n.tar.gz", tmp_path / "out")
