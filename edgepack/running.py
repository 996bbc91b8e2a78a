"""`edgepack run`: one variant of a bundle on the user's own arrays, through the harness that ships."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack import elf, emulator, process
from edgepack.bundle import Bundle, open_bundle, target_from
from edgepack.cache import out_of_space
from edgepack.errors import DeviceFailed, ToolMissing, UsageError
from edgepack.types import Completed, TensorSpec

Arrays = dict[str, npt.NDArray[Any]]
Facts = Mapping[str, Any]  # what a manifest says of a variant
SECONDS = 1800.0


def run(path: Path, variant: str, input_file: Path, output_file: Path, *, device: str, threads: int) -> dict[str, Any]:
    """Run `variant` on the arrays of an ``.npz`` and write the outputs as ``.npz`` under the source's names.

    Where the bundle has input sets, a name without one, such as ``ncnn-int8``, stands for the variant of that engine
    and precision whose shapes are those of the arrays.
    Raises `UsageError` (no such variant or device, arrays that don't fit), `ToolMissing` (a foreign architecture
    and no emulator) and `DeviceFailed` (the harness said no, or the bundle is not deployed there).
    """
    bundle = open_bundle(path)
    item, inputs = fitting(bundle, variant, input_file)
    variant, engine = item["name"], item["engine"]
    folder, (specs, output_specs) = bundle.variant(variant), bundle.tensors(item)
    if device != "local":
        how, results = _on_device(bundle, item, inputs, device, threads)
        write_npz(output_file, results)
        return _facts(item, output_specs, how, output_file)
    target = target_from(bundle.manifest["target"])
    program = path.resolve() / "bin" / f"edgepack-{engine}"
    runner = emulator.find(target, static=elf.needs(program).static)
    if runner is None:
        raise ToolMissing(f"This machine can't run {target.arch} programs: {emulator.why_not(target)}.", "")
    with tempfile.TemporaryDirectory(prefix="edgepack-run-") as scratch:
        ins, outs = Path(scratch, "in"), Path(scratch, "out")
        ins.mkdir()
        outs.mkdir()
        for index, spec in enumerate(specs):
            np.save(ins / f"in_{index}.npy", np.ascontiguousarray(inputs[spec.name]), allow_pickle=False)
        argv = [program, "run", "--variant", folder.resolve()]
        argv += ["--inputs", ins, "--outputs", outs, "--threads", threads]
        done = runner.run([str(a) for a in argv], SECONDS)
        _check(done, item)
        results = {
            spec.name: np.load(outs / f"out_{index}.npy", allow_pickle=False) for index, spec in enumerate(output_specs)
        }
    write_npz(output_file, results)
    return _facts(item, output_specs, runner.how, output_file)


def fitting(bundle: Bundle, name: str, file: Path) -> tuple[Facts, Arrays]:
    """What the manifest says of the variant that a name stands for, and the arrays of `file` for its inputs.

    Raises `UsageError`: no such variant, or arrays that fit none that the name stands for.
    """
    family = [v for v in bundle.manifest["variants"] if name in (v["name"], f"{v['engine']}-{v['precision']}")]
    named = [item for item in family if item["name"] == name] or family[:1] or [bundle.facts(name)]
    arrays = read_arrays(file, bundle.tensors(named[0])[0])
    for item in family:
        if not any(why_not(arrays, spec) for spec in bundle.tensors(item)[0]):
            return item, arrays
    specs = bundle.tensors(named[0])[0]
    others = [f"{v['name']} {[list(spec.shape) for spec in bundle.tensors(v)[0]]}" for v in family if v != named[0]]
    hint = _hint(specs) + (f" Others: {'; '.join(others)}." if others else "")
    why = next(why for spec in specs if (why := why_not(arrays, spec)))
    raise UsageError(f"{file} {why}.", hint, id="EP241")


def _facts(item: Facts, outputs: tuple[TensorSpec, ...], how: str, output_file: Path) -> dict[str, Any]:
    return {
        "variant": item["name"],
        "input_set": item.get("input_set", ""),
        "how": how,
        "output": str(output_file),
        "outputs": [{"name": s.name, "dtype": s.dtype, "shape": list(s.shape)} for s in outputs],
    }


def _on_device(bundle: Bundle, item: Facts, inputs: Arrays, name: str, threads: int) -> tuple[str, Arrays]:
    """Run on a device that has the bundle deployed; arrays travel as .npy files."""
    from edgepack import inventory
    from edgepack.device import DeviceSession

    device = inventory.find(name)
    variant, engine = item["name"], item["engine"]
    specs, output_specs = bundle.tensors(item)
    with DeviceSession.open(device) as session:
        active = session.active(bundle.manifest["name"]) or {}
        digests = (active.get("digest"), active.get("selected_from"))
        variants = [item["name"] for item in active.get("variants", ())]
        if bundle.manifest["digest"] not in digests or variant not in variants:
            raise DeviceFailed(
                f"{variant} of {bundle.path.name} is not what {name} has active.",
                f"Deploy it first: edgepack deploy {bundle.path} --device {name}",
                id="EP608",
            )
        with tempfile.TemporaryDirectory(prefix="edgepack-run-") as scratch, session.run_folder(SECONDS) as folder:
            files = {f"in_{i}.npy": _npy(inputs[spec.name]) for i, spec in enumerate(specs)}
            folder.put(files)
            args = ["run", "--variant", f"variants/{variant}", "--inputs", folder.path, "--outputs", folder.path]
            try:
                done = session.harness(engine, [*args, "--threads", str(threads)], SECONDS, lease=int(SECONDS) + 60)
            except process.TimedOut as error:
                raise DeviceFailed(f"{name}: the harness was killed after {error.seconds:.0f} s.", "") from None
            _check(done, item)
            results = {}
            for index, spec in enumerate(output_specs):
                local = Path(scratch, f"out_{index}.npy")
                folder.get(local.name, local)
                results[spec.name] = np.load(local, allow_pickle=False)
    return f"on {name}", results


def _check(done: Completed, item: Facts) -> None:
    if crash := emulator.describe_crash(done.returncode, item["engine"]):
        raise DeviceFailed(f"{item['name']}: {crash[0]}", crash[1])
    if done.returncode != 0:
        words = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no message"]
        ending = process.describe_exit(done.returncode)
        raise DeviceFailed(f"The harness of {item['name']} ended with {ending}: {words[0]}", "")


def _npy(array: npt.NDArray[Any]) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.ascontiguousarray(array), allow_pickle=False)
    return stream.getvalue()


def read_arrays(path: Path, specs: tuple[TensorSpec, ...]) -> Arrays:
    """Read an ``.npz``; `specs` are told where it can't be read. Raises `UsageError`."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            if not hasattr(archive, "files"):
                raise UsageError(f"{path} is a single array, not an .npz.", _hint(specs), id="EP241")
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UsageError(f"{path} can't be read as .npz: {error}.", _hint(specs), id="EP241") from None


def why_not(arrays: Arrays, spec: TensorSpec) -> str:
    """Why the arrays don't have what an input takes, as a clause; "" when they do."""
    if spec.name not in arrays:
        return f"has no array {spec.name!r}; it has {sorted(arrays)}"
    array = arrays[spec.name]
    if array.shape != spec.shape or str(array.dtype) != spec.dtype:
        taken = f"{spec.dtype} {list(spec.shape)}"
        return f"holds {spec.name!r} as {array.dtype} {list(array.shape)}, the model takes {taken}"
    return ""


def _hint(specs: tuple[TensorSpec, ...]) -> str:
    wanted = ", ".join(f"{s.name!r} {s.dtype} {list(s.shape)}" for s in specs)
    return f"The model's inputs: {wanted}. Write them with numpy.savez."


def write_npz(path: Path, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Write arrays under any names: ``numpy.savez`` can't take a tensor that is called ``file``."""
    with out_of_space(path.parent), zipfile.ZipFile(path, "w") as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy")
            with archive.open(entry, "w", force_zip64=True) as stream:
                np.lib.format.write_array(stream, array, allow_pickle=False)
