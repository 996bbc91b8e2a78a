"""Command line + target + defaults -> BuildPlan: every decision of one build, and every check that can be
made before any work."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
import sysconfig
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edgepack import converter, input_sets, log, plugins, toolchains
from edgepack.errors import CalibrationError, ToolMissing, UsageError
from edgepack.interfaces import Engine, Importer
from edgepack.types import (
    DEFAULT_INT8,
    NO_GATE,
    Compiler,
    GateSpec,
    InputSet,
    Int8Options,
    Outcome,
    Precision,
    Preprocess,
    Status,
    Target,
    TensorSpec,
    Variant,
)

NEEDS_DATA = "INT8 needs real inputs for calibration, and none were given"
NEEDS_DATA_HINT = "Add --calib DIR_OR_NPZ with some tens of real inputs. edgepack never calibrates on noise."
ALREADY_QUANTIZED = "the source is quantized already, and this variant can't keep its scales"
ALREADY_QUANTIZED_HINT = "Its INT8 variants are built with the scales that it has. For others give the float model."
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """Every decision of one build. `refused` are variants known not to be built, with their reasons.

    With `input_sets`, `variants` holds those of all sets. A plan with `input_set` is that of one set (`for_set`).
    """

    source: str
    name: str
    importer: Importer
    shapes: Mapping[str, tuple[int, ...]]
    options: Mapping[str, Any]
    target: Target
    variants: tuple[Variant, ...]
    refused: tuple[Outcome, ...]
    named: frozenset[Variant]
    calibration: Path | None
    samples: Path | None
    preprocess: Mapping[str, Preprocess]
    destination: Path
    int8: Int8Options = DEFAULT_INT8
    gate: GateSpec = NO_GATE
    results: Path | None = None
    jobs: int = field(default_factory=lambda: os.cpu_count() or 1)
    input_sets: tuple[InputSet, ...] = ()
    input_set: str = ""

    @property
    def where(self) -> str:
        """What is said of a set's steps, after their name."""
        return f" at {self.input_set}" if self.input_set else ""

    def for_sets(self, inputs: tuple[TensorSpec, ...]) -> dict[str, BuildPlan]:
        """A plan for each input set, and under "" the one without; `inputs` are the model's without a set.

        Raises `UsageError` where a set doesn't fit them.
        """
        found = {"": replace(self, variants=tuple(v for v in self.variants if not v.input_set), input_sets=())}
        shapes = input_sets.check(self.input_sets, inputs)
        for item in self.input_sets:
            found[item.name] = replace(
                self,
                input_set=item.name,
                input_sets=(),
                shapes={**self.shapes, **shapes[item.name]},
                preprocess=input_sets.preprocess_of(item, inputs, self.preprocess, shapes[item.name]),
                calibration=item.calibration or self.calibration,
                samples=item.samples or self.samples,
                gate=replace(self.gate, data=item.data or self.gate.data),
                variants=tuple(v for v in self.variants if v.input_set == item.name),
                refused=(),
            )
        return found

    def engine(self, name: str) -> Engine:
        """The engine plugin `name`."""
        engine: Engine = plugins.load("engines", name)
        return engine


def make_plan(
    source: str,
    target: Target,
    *,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    dtypes: Mapping[str, str] | None = None,
    weights: Path | None = None,
    python: Path | None = None,
    signature: str | None = None,
    calibration: Path | None = None,
    samples: Path | None = None,
    preprocess: Mapping[str, Preprocess] | None = None,
    engines: Sequence[str] = (),
    precisions: Sequence[Precision] = (),
    int8: Int8Options = DEFAULT_INT8,
    gate: GateSpec = NO_GATE,
    results: Path | None = None,
    output: Path = Path(),
    name: str | None = None,
    jobs: int | None = None,
    sets: tuple[InputSet, ...] = (),
) -> BuildPlan:
    """Decide everything that can be decided without work.

    Raises `UsageError` (unknown engine, missing file, occupied output), `ModelError` (a source that no importer
    takes) and `CalibrationError` (INT8 named without calibration data).
    """
    importer = find_importer(source)
    given = [("--calib", calibration), ("--samples", samples), ("--weights", weights), ("--results", results)]
    for each in sets:
        given += [("--calib", each.calibration), ("--samples", each.samples), ("--data", each.data)]
    for what, path in given:
        function = what in ("--calib", "--samples")
        if path is not None and not path.exists() and not (function and looks_like_factory(str(path))):
            hint = "Check the path, or give package.module:function." if function else "Check the path."
            raise UsageError(f"{what} {path} doesn't exist.", hint, id="EP204")
    quantized = bool(getattr(importer, "quantized", lambda _: False)(source))
    has_data = calibration is not None
    variants, refused = choose_variants(target, engines, precisions, has_data=has_data, quantized=quantized)
    for each in sets:
        known = has_data or each.calibration is not None
        more, _ = choose_variants(target, engines, precisions, has_data=known, quantized=quantized)
        variants += tuple(replace(variant, input_set=each.name) for variant in more)
    if not variants and any(outcome.reason == NEEDS_DATA for outcome in refused):
        raise CalibrationError(f"{NEEDS_DATA}.", NEEDS_DATA_HINT, id="EP321")
    if not variants:
        reasons = "; ".join(f"{o.variant}: {o.reason}" for o in refused)
        raise UsageError(f"Nothing to build for {target.name}: {reasons}.", "See `edgepack targets`.", id="EP205")
    chosen = name or default_name(source)
    destination = output / f"{chosen}-{target.name}.edgepack"
    check_destination(destination)
    named = {
        outcome.variant
        for outcome in refused
        if outcome.variant.precision in precisions
        or (outcome.variant.engine in engines and outcome.reason != NEEDS_DATA)
    } | {variant for variant in variants if variant.engine in engines or variant.precision in precisions}
    return BuildPlan(
        source=source,
        name=chosen,
        importer=importer,
        shapes=dict(shapes or {}),
        options={
            "weights": weights,
            "python": python,
            "signature": signature,
            "dtypes": dict(dtypes or {}),
            "pythonpath": _site(),
        },
        target=target,
        variants=variants,
        refused=refused,
        named=frozenset(named),
        calibration=calibration,
        samples=samples,
        preprocess=dict(preprocess or {}),
        destination=destination,
        int8=int8,
        gate=gate,
        results=results,
        jobs=jobs or os.cpu_count() or 1,
        input_sets=sets,
    )


def find_importer(source: str) -> Importer:
    """The importer that takes `source`; importers look at the content, not only at the name."""
    path = Path(source)
    if not path.exists() and not looks_like_factory(source):
        raise UsageError(
            f"{source} doesn't exist.",
            "Give a model file, or package.module:factory for PyTorch.",
            id="EP204",
        )
    found: list[Importer] = plugins.load_all("importers")
    for importer in found:
        if importer.accepts(source):
            return importer
    if path.is_dir():
        raise UsageError(
            f"{source} is a directory, not a model file.",
            "Give the file inside it, such as model.onnx. (A folder is a model when it is a TensorFlow SavedModel.)",
            id="EP206",
        )
    onnx: Importer = plugins.load("importers", "onnx")
    return onnx  # its refusal says what the file looks like


def looks_like_factory(source: str) -> bool:
    """Whether `source` has the form ``package.module:factory``."""
    return re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", source) is not None


def choose_variants(
    target: Target,
    engines: Sequence[str],
    precisions: Sequence[Precision],
    *,
    has_data: bool,
    quantized: bool = False,
) -> tuple[tuple[Variant, ...], tuple[Outcome, ...]]:
    """Engine x precision of the profile, narrowed to what was named; refusals keep their reasons."""
    installed = plugins.names("engines")
    for engine in engines:
        if engine not in installed:
            near = difflib.get_close_matches(engine, installed, n=1)
            guess = f" Did you mean {near[0]!r}?" if near else ""
            raise UsageError(f"There is no engine {engine!r}.{guess}", f"Engines: {', '.join(installed)}.", id="EP203")
    variants: list[Variant] = []
    refused: list[Outcome] = []
    for engine in engines or (*target.engines, *target.absent):
        for precision in precisions or target.precisions:
            variant = Variant(engine=engine, precision=precision)
            if engine not in target.engines:
                reason = target.absent.get(engine, f"the profile {target.name} doesn't list {engine}")
                hint = f"Engines for {target.name}: {', '.join(target.engines)}."
                refused.append(_refuse(variant, reason, hint))
            elif precision not in target.precisions:
                refused.append(_refuse(variant, f"the profile {target.name} doesn't list {precision}", ""))
            elif quantized and (precision is not Precision.INT8 or not keeps_scales(engine)):
                refused.append(_refuse(variant, ALREADY_QUANTIZED, ALREADY_QUANTIZED_HINT))
            elif precision is Precision.INT8 and not has_data and not quantized:
                refused.append(_refuse(variant, NEEDS_DATA, NEEDS_DATA_HINT))
            else:
                variants.append(variant)
    return tuple(variants), tuple(refused)


def keeps_scales(engine: str) -> bool:
    """Whether an engine can take a source that is quantized already, with the scales that it has."""
    return bool(getattr(plugins.find("engines", engine), "keeps_scales", False))


def _refuse(variant: Variant, reason: str, hint: str) -> Outcome:
    return Outcome(variant=variant, status=Status.UNSUPPORTED, reason=reason, hint=hint)


def check_destination(destination: Path) -> None:
    """A bundle may replace a bundle, and nothing else."""
    if destination.is_symlink() or (destination.exists() and not (destination / MANIFEST).is_file()):
        raise UsageError(
            f"{destination} exists and is not an edgepack bundle; it is left as it is.",
            "Move it away or choose another folder with -o.",
            id="EP207",
        )
    parent = destination.parent
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise UsageError(f"{parent} can't be written.", "Choose another folder with -o.", id="EP208")


def default_name(source: str) -> str:
    """A bundle's name from its source: the file's stem, or the factory's name; only ``A-Za-z0-9._-``."""
    stem = source.rsplit(":", 1)[-1] if looks_like_factory(source) else Path(source).stem
    return re.sub(r"[^A-Za-z0-9._-]+", "_", stem).strip("._-") or "model"


def parse_input(text: str, option: str = "--input") -> tuple[str, tuple[int, ...], str | None]:
    """Read ``NAME=1x3x224x224[:dtype]``. Raises `UsageError`."""
    found = re.fullmatch(r"(.+)=(\d+(?:x\d+)*|)(?::(\w+))?", text, re.S)
    if found is None:
        raise UsageError(
            f"{option} {text!r} is not NAME=SHAPE.", "Write it like --input image=1x3x224x224 or ids=1x128:int64.",
            id="EP209",
        )  # fmt: skip
    name, shape, dtype = found.groups()
    sizes = tuple(int(size) for size in shape.split("x")) if shape else ()
    if any(size < 1 for size in sizes):
        raise UsageError(f"{option} {text!r} has a size below 1.", "Sizes are positive whole numbers.", id="EP209")
    return name, sizes, dtype


def prepare(plan: BuildPlan) -> dict[str, Compiler]:
    """Find a compiler per engine and make every converter environment, before any work.

    Raises one `ToolMissing` that lists everything that is missing.
    """
    missing: list[ToolMissing] = []
    compilers: dict[str, Compiler] = {}
    for engine in sorted({variant.engine for variant in plan.variants}):
        try:
            compilers[engine] = _compiler(plan.target, engine)
        except ToolMissing as error:
            missing.append(error)
    with ThreadPoolExecutor(4) as pool:
        tries = [pool.submit(converter.environment, script) for script in sorted(needed_scripts(plan))]
    missing += [error for error in (each.exception() for each in tries) if isinstance(error, ToolMissing)]
    if missing:
        messages = dict.fromkeys(error.message.rstrip(".") for error in missing)
        hints = dict.fromkeys(error.hint for error in missing)
        raise ToolMissing("; ".join(messages) + ".", " ".join(hints))
    for each in tries:
        each.result()
    return compilers


def _compiler(target: Target, engine: str) -> Compiler:
    """The system's compiler for the target, else zig from the package index (about 410 MB, once)."""
    try:
        return toolchains.select(target, engine)
    except ToolMissing:
        if converter.prepared("zig") or os.environ.get("EDGEPACK_OFFLINE") == "1":
            raise
        log.note(f"no cross compiler for {target.name} is installed; fetching zig from the package index instead")
        with contextlib.suppress(ToolMissing):
            converter.environment("zig")
        return toolchains.select(target, engine)


def needed_scripts(plan: BuildPlan) -> set[str]:
    """The converter scripts that a plan may run."""
    scripts = {"run_onnxruntime"}
    if plan.options["python"] is None:
        scripts |= set(plan.importer.tools)
    for graph_pass in plugins.load_all("passes"):
        scripts |= set(graph_pass.tools)
    for variant in plan.variants:
        engine = plan.engine(variant.engine)
        scripts |= set(engine.tools(variant.precision)) | set(getattr(engine, "build_config_tools", ()))
        base = engine.base(variant.precision)
        scripts |= set(engine.tools(base)) if base is not None else set()
    return scripts


def named_failures(plan: BuildPlan, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Outcomes that the user asked for by name and did not get, or for which the user set a gate that they missed.

    An input set is asked for by name: where nothing of it was built, all its outcomes count.
    """
    missed = [o for o in outcomes if o.gate is not None and not o.gate.passed]
    failed = [o for o in outcomes if o.status is not Status.BUILT and o not in missed]
    built = {outcome.variant.input_set for outcome in outcomes if outcome.status is Status.BUILT}
    empty = {item.name for item in plan.input_sets} - built
    return missed + [o for o in failed if o.variant in plan.named or o.variant.input_set in empty]


def _site() -> list[str]:
    """Where packages installed beside edgepack are: a factory's own code may live there."""
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
