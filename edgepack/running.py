"""`edgepack run`: one variant of a bundle on the user's own arrays, through the harness that ships."""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack import elf, emulator
from edgepack.bundle import open_bundle, target_from
from edgepack.cache import out_of_space
from edgepack.errors import DeviceFailed, ToolMissing, UsageError
from edgepack.types import TensorSpec

Arrays = dict[str, npt.NDArray[Any]]
SECONDS = 1800.0


def run(path: Path, variant: str, input_file: Path, output_file: Path, *, device: str, threads: int) -> dict[str, Any]:
    """Run `variant` on the arrays of an ``.npz`` and write the outputs as ``.npz`` under the source's names.

    Raises `UsageError` (no such variant, arrays that don't fit), `ToolMissing` (a foreign architecture and no
    emulator) and `DeviceFailed` (the harness said no).
    """
    if device != "local":
        raise UsageError(
            f"There is no transport to the device {device!r} in this version; bundles run on `local` only.",
            "Copy the bundle to the device and call bin/edgepack-ENGINE run there.",
            id="EP240",
        )
    bundle = open_bundle(path)
    folder = bundle.variant(variant)
    inputs = read_npz(input_file, bundle.inputs)
    target = target_from(bundle.manifest["target"])
    engine = variant.rsplit("-", 1)[0]
    program = path.resolve() / "bin" / f"edgepack-{engine}"
    runner = emulator.find(target, static=elf.needs(program).static)
    if runner is None:
        raise ToolMissing(f"This machine can't run {target.arch} programs: {emulator.why_not(target)}.", "")
    with tempfile.TemporaryDirectory(prefix="edgepack-run-") as scratch:
        ins, outs = Path(scratch, "in"), Path(scratch, "out")
        ins.mkdir()
        outs.mkdir()
        for index, spec in enumerate(bundle.inputs):
            np.save(ins / f"in_{index}.npy", np.ascontiguousarray(inputs[spec.name]), allow_pickle=False)
        argv = [program, "run", "--variant", folder.resolve()]
        argv += ["--inputs", ins, "--outputs", outs, "--threads", threads]
        done = runner.run([str(a) for a in argv], SECONDS)
        if crash := emulator.describe_crash(done.returncode, engine):
            raise DeviceFailed(f"{variant}: {crash[0]}", crash[1])
        if done.returncode != 0:
            words = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no message"]
            raise DeviceFailed(f"The harness of {variant} ended with {done.returncode}: {words[0]}", "")
        results = {
            spec.name: np.load(outs / f"out_{index}.npy", allow_pickle=False)
            for index, spec in enumerate(bundle.outputs)
        }
    write_npz(output_file, results)
    return {
        "variant": variant,
        "how": runner.how,
        "output": str(output_file),
        "outputs": [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in bundle.outputs],
    }


def read_npz(path: Path, specs: tuple[TensorSpec, ...]) -> Arrays:
    """Read arrays whose keys are the inputs' names; each must have the input's dtype and shape."""
    wanted = ", ".join(f"{s.name!r} {s.dtype} {list(s.shape)}" for s in specs)
    hint = f"The model's inputs: {wanted}. Write them with numpy.savez."
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise UsageError(f"{path} is a single array, not an .npz.", hint, id="EP241")
            arrays: Arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UsageError(f"{path} can't be read as .npz: {error}.", hint, id="EP241") from None
    for spec in specs:
        if spec.name not in arrays:
            raise UsageError(f"{path} has no array {spec.name!r}; it has {sorted(arrays)}.", hint, id="EP241")
        array = arrays[spec.name]
        if array.shape != spec.shape or str(array.dtype) != spec.dtype:
            raise UsageError(
                f"{path}: {spec.name!r} is {array.dtype} {list(array.shape)}, "
                f"the model takes {spec.dtype} {list(spec.shape)}.",
                hint,
                id="EP241",
            )
    return arrays


def write_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays under any names: ``numpy.savez`` can't take a tensor that is called ``file``."""
    with out_of_space(path.parent), zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            with archive.open(entry, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
