"""ncnn's source tree: unpacked safely, and compiled with no more layers and instruction sets than are needed.

A layer is often made of others: convolutions make their activation, attention makes Gemm and Softmax, and
x86's INT8 convolution calls into Gemm's code. `close` finds that in the sources themselves, because a layer
that is left out by mistake is a null pointer on the device.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

from edgepack.errors import IntegrityError, VariantError
from edgepack.types import Precision, Target

# What ncnn's own loop needs whatever the model is: it changes layout and type between layers.
IMPLICIT = ("Cast", "Input", "Packing", "Split")
# Functions of mat.h that make a layer.
_HELPERS = {
    "cast_float16_to_float32": "Cast",
    "cast_float32_to_float16": "Cast",
    "convert_packing": "Packing",
    "copy_cut_border": "Crop",
    "copy_cut_border_3d": "Crop",
    "copy_make_border": "Padding",
    "copy_make_border_3d": "Padding",
    "dequantize_from_int32": "Dequantize",
    "flatten": "Flatten",
    "quantize_to_int8": "Quantize",
    "requantize_from_int32_to_int8": "Requantize",
    "resize_bicubic": "Interp",
    "resize_bilinear": "Interp",
    "resize_nearest": "Interp",
}
_INT8_ONLY = {"Dequantize", "Quantize", "Requantize"}
WINOGRAD = "Convolution/winograd"  # said beside a model's layers where it has a convolution that Winograd's are for
BATCH = "Reshape/batch"  # likewise, where a Reshape names a batch axis: without NCNN_BATCH it would refuse to load
_ACTIVATIONS = "fused_activation.h"  # a model's layers name those that are fused into others
FOLDERS = {"aarch64": "arm", "armhf": "arm", "x86_64": "x86", "riscv64": "riscv"}
LAYERS = "-DEDGEPACK_NCNN_LAYERS="
SMALL = "small"
LONG_AGO = 1577836800  # 2020-01-01
_PARTS = ("CMakeLists.txt", "LICENSE.txt", "cmake", "src")
_CALLS = re.compile(rf"\b({'|'.join(_HELPERS)})\s*\(")
_CREATE = re.compile(r"\bcreate_layer(?:_cpu)?\s*\(\s*(?:ncnn::)?LayerType::(\w+)")
_INCLUDE = re.compile(r'^\s*#\s*include\s*"([^"]+)"', re.M)
# Instruction sets that a profile may switch on, by the features that stand for them; all others are off.
_FEATURES = {
    "NCNN_ARM82": ("asimdhp",),
    "NCNN_ARM82DOT": ("asimddp",),
    "NCNN_ARM82FP16FML": ("asimdfhm",),
    "NCNN_ARM84I8MM": ("i8mm",),
    "NCNN_VFPV4": ("neon", "vfpv4"),
    "NCNN_RVV": ("v",),
    "NCNN_ZFH": ("zfh",),
    "NCNN_ZVFH": ("zvfh",),
    "NCNN_AVX": ("avx",),
    "NCNN_FMA": ("fma",),
    "NCNN_F16C": ("f16c",),
    "NCNN_AVX2": ("avx2",),
    "NCNN_AVX512": ("avx512f", "avx512cd", "avx512bw", "avx512dq", "avx512vl"),
    "NCNN_AVX512VNNI": ("avx512_vnni",),
}
_X86_NEVER = ("FMA4", "XOP", "AVXVNNI", "AVXVNNIINT8", "AVXVNNIINT16", "AVXNECONVERT", "AVX512BF16", "AVX512FP16")


def arguments(target: Target, layers: Iterable[str], precisions: Iterable[Precision] = ()) -> tuple[str, ...]:
    """CMake arguments for ncnn on `target`: options, instruction sets, and the wanted layers for `layer_arguments`.

    A small program has no code for other precisions than `precisions` and no kernels that `layers` don't ask for.
    A fast one is made for all of the profile's precisions, so that all models share its compiled layers.
    """
    wanted = set(layers)
    small = target.size == SMALL
    options = {
        # Its own small thread pool: libgomp and libomp are not there on every target, and this one links statically.
        "NCNN_OPENMP": True,
        "NCNN_SIMPLEOMP": True,
        "NCNN_THREADS": True,
        # No variant of ours is bf16, and g++ 12 can't compile its kernels for 32-bit Arm.
        "NCNN_BF16": False,
        "NCNN_INT8": Precision.INT8 in _precisions(target, precisions),
        "NCNN_WEIGHT_QUANT": False,  # weights that are widened while computing: no variant of ours has them
        "NCNN_BATCH": not small or not wanted or BATCH in wanted,
        "NCNN_C_API": False,
        "NCNN_PIXEL": False,
        "NCNN_PIXEL_ROTATE": False,
        "NCNN_PIXEL_AFFINE": False,
        "NCNN_PIXEL_DRAWING": False,
        "NCNN_PLATFORM_API": False,
        # The profile says which instructions every core has, so there is nothing to find out on the device.
        "NCNN_RUNTIME_CPU": False,
        "EDGEPACK_NCNN_WINOGRAD": not small or not wanted or WINOGRAD in wanted,
        **_instructions(target, precisions),
    }
    flags = [f"-D{name}={'ON' if on else 'OFF'}" for name, on in sorted(options.items())]
    return (*flags, f"-DEDGEPACK_SIZE={target.size}", f"{LAYERS}{';'.join(sorted(wanted - {WINOGRAD, BATCH}))}")


def used_features(target: Target, precisions: Iterable[Precision] = ()) -> tuple[str, ...]:
    """The CPU features, by their names in /proc/cpuinfo, that ncnn's code uses when it is compiled for `target`."""
    on = _instructions(target, precisions)
    return tuple(sorted({feature for option, features in _FEATURES.items() if on.get(option) for feature in features}))


def layer_arguments(arguments: Iterable[str], source: Path, arch: str) -> list[str]:
    """`arguments` with the wanted layers turned into one ``-DWITH_LAYER_x`` each, for ncnn's tree `source`."""
    given = set(arguments)
    without = {_ACTIVATIONS} if f"-DEDGEPACK_SIZE={SMALL}" in given else set()
    if "-DEDGEPACK_NCNN_WINOGRAD=OFF" in given:
        without.add("winograd")
    result = []
    for argument in arguments:
        if not argument.startswith(LAYERS):
            result.append(argument)
            continue
        wanted = [name for name in argument.removeprefix(LAYERS).split(";") if name]
        kept = close(source, arch, wanted, without=without, int8="-DNCNN_INT8=OFF" not in given)
        result += [f"-DWITH_LAYER_{name.lower()}={'ON' if name in kept else 'OFF'}" for name in known_layers(source)]
    return result


def shared_arguments(arguments: Iterable[str]) -> list[str]:
    """`arguments` without those that change from model to model and leave other layers' code as it is."""
    return [a for a in arguments if not a.startswith((LAYERS, "-DWITH_LAYER_", "-DEDGEPACK_NCNN_WINOGRAD"))]


def known_layers(source: Path) -> list[str]:
    """Every layer type that the tree can build, in its own order."""
    return re.findall(r"^ncnn_add_layer\((\w+)", (source / "src" / "CMakeLists.txt").read_text(), re.M)


def close(
    source: Path, arch: str, wanted: Iterable[str], *, without: Collection[str] = (), int8: bool = True
) -> frozenset[str]:
    """`wanted` with the implicit layers and all that their code makes or calls; all layers when nothing is wanted.

    What is made by files with one of `without` in their names isn't followed. Raises `VariantError` for a layer that
    this ncnn doesn't know.
    """
    known = known_layers(source)
    asked = list(wanted)
    unknown = sorted(set(asked) - set(known))
    if unknown:
        raise VariantError(f"The ncnn that edgepack compiles has no layer {', '.join(unknown)}.")
    if not asked:
        return frozenset(known)
    kept: set[str] = set()
    todo = [*asked, *IMPLICIT]
    while todo:
        name = todo.pop()
        if name not in kept and (int8 or name in asked or name not in _INT8_ONLY):
            kept.add(name)
            todo += _uses(source / "src", FOLDERS[arch], name, known, without)
    return frozenset(kept)


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack what is needed of ncnn's sdist below `folder` and return the tree. Raises `IntegrityError`.

    All files are of one day long ago, so that what was compiled from an earlier unpacking in the same place is newer.
    """
    top = ""
    try:
        with tarfile.open(archive) as sdist:
            for entry in sdist:
                path = PurePosixPath(entry.name)
                if path.is_absolute() or ".." in path.parts:
                    raise IntegrityError(f"{archive.name} holds a path that leaves its folder: {entry.name!r}.")
                if entry.isdir() or len(path.parts) < 2 or path.parts[1] not in _PARTS:
                    continue
                if not entry.isreg():
                    raise IntegrityError(f"{archive.name} holds {entry.name!r}, which is not a regular file.")
                top = path.parts[0]
                stream = sdist.extractfile(entry)
                assert stream is not None
                target = folder / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(stream.read())
                os.utime(target, (LONG_AGO, LONG_AGO))
    except (OSError, EOFError, tarfile.TarError) as error:
        raise IntegrityError(f"{archive} can't be unpacked: {error}.", "Remove the file.") from error
    if not (folder / top / "src" / "CMakeLists.txt").is_file():
        raise IntegrityError(f"{archive.name} is not ncnn's source: it has no src/CMakeLists.txt.")
    return folder / top


def _precisions(target: Target, built: Iterable[Precision]) -> set[Precision]:
    """The precisions that code is made for."""
    chosen = set(built)
    return chosen if target.size == SMALL and chosen else set(target.precisions)


def _instructions(target: Target, precisions: Iterable[Precision]) -> dict[str, bool]:
    """ncnn's options for instruction sets. ncnn nests them: one needs those before it."""
    arch, has = target.arch, set(target.cpu_features)
    if _precisions(target, precisions) == {Precision.FP32}:
        has -= {"asimdhp", "asimdfhm"}  # kernels that compute in float16, and what is nested in them

    def on(*options: str) -> bool:
        return all(has.issuperset(_FEATURES[f"NCNN_{option}"]) for option in options)

    if arch == "aarch64":
        return {
            "NCNN_ARM82": on("ARM82"),
            "NCNN_ARM82DOT": on("ARM82", "ARM82DOT"),
            "NCNN_ARM82FP16FML": on("ARM82", "ARM82FP16FML"),
            "NCNN_ARM84BF16": False,
            "NCNN_ARM84I8MM": on("ARM82", "ARM82DOT", "ARM82FP16FML", "ARM84I8MM"),
            "NCNN_ARM86SVE": False,  # a third of the compile time, and no profile has it on every core
        }
    if arch == "armhf":
        return {"NCNN_VFPV4": on("VFPV4")}
    if arch == "riscv64":
        zvfh = on("RVV", "ZFH", "ZVFH")
        return {"NCNN_RVV": on("RVV"), "NCNN_XTHEADVECTOR": False, "NCNN_ZFH": on("ZFH"), "NCNN_ZVFH": zvfh}
    return {
        "NCNN_AVX": on("AVX"),
        "NCNN_FMA": on("AVX", "FMA", "F16C"),
        "NCNN_F16C": on("AVX", "FMA", "F16C"),
        "NCNN_AVX2": on("AVX", "FMA", "F16C", "AVX2"),
        "NCNN_AVX512": on("AVX", "FMA", "F16C", "AVX2", "AVX512"),
        "NCNN_AVX512VNNI": on("AVX", "FMA", "F16C", "AVX2", "AVX512", "AVX512VNNI"),
        **{f"NCNN_{name}": False for name in _X86_NEVER},
    }


def _uses(src: Path, folder: str, name: str, known: list[str], without: Collection[str]) -> set[str]:
    """Layer types that the code of one layer creates, or whose own functions it calls."""
    low = name.lower()
    todo = [*(src / "layer").glob(f"{low}.*"), *(src / "layer" / folder).glob(f"{low}_{folder}*.*")]
    seen: set[Path] = set()
    found: set[str] = set()
    while todo:
        path = todo.pop()
        if path in seen or any(part in path.name for part in without):
            continue
        seen.add(path)
        text = path.read_text(errors="replace")
        found.update(_CREATE.findall(text))
        found.update(_HELPERS[call] for call in _CALLS.findall(text))
        found.update(word for word in re.findall(rf"\b([A-Z]\w*?)_{folder}\w*", text) if word in known)
        for included in _INCLUDE.findall(text):
            places = (path.parent / included, src / "layer" / included, src / "layer" / folder / included)
            todo += [place.resolve() for place in places if place.is_file()][:1]
    return (found & set(known)) - {name}
