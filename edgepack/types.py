"""The nouns: frozen, keyword-only dataclasses that travel between the steps.

Shapes are tuples of positive ints, dtypes are numpy names ("float32", "int64", "uint8", "bool"),
sizes are bytes, durations are seconds unless a name says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal


class Precision(StrEnum):
    """Number format of a variant's weights and arithmetic."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


class Status(StrEnum):
    """How one variant ended."""

    BUILT = "built"
    UNSUPPORTED = "unsupported"
    FAILED = "failed"
    DROPPED = "dropped"


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of the source model, as the user sees it everywhere."""

    name: str
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How a photograph becomes one input tensor.

    The order is: decode to RGB uint8, resize, centre crop, colour order, pad, ``(x - mean) / std``, layout.
    ``mean``, ``std`` and ``pad_value`` are in units of the 0..255 pixel scale, one value or one per channel.
    ``resize`` is (height, width), which ``fit`` reaches in one of three ways, or the length of the shorter side.
    """

    layout: str = "NCHW"
    color: str = "RGB"
    resize: tuple[int, int] | int | None = None
    fit: str = "stretch"
    method: str = "bilinear"
    crop: tuple[int, int] | None = None
    pad: tuple[int, int] | None = None
    pad_value: tuple[float, ...] = (0.0,)
    pad_place: str = "center"
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)


@dataclass(frozen=True, kw_only=True)
class InputSet:
    """Shapes of a model's inputs beside those of ``--input``: every variant is built for them once more.

    ``shapes`` and ``preprocess`` hold the inputs that differ, the others are as without the set. Data that are None are
    those without the set, brought to these shapes.
    """

    name: str
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    preprocess: Mapping[str, Preprocess] = field(default_factory=dict)
    calibration: Path | None = None
    samples: Path | None = None
    data: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Origin:
    """A source that is one engine's own format already: that engine's variant of `precision` is the file as it is."""

    engine: str
    path: Path
    precision: Precision


@dataclass(frozen=True, kw_only=True)
class Model:
    """An ONNX file with fixed shapes, one file, and what is known about it.

    ``zero_points`` are those of quantized outputs, 0 for others; none for a source without quantized outputs.
    """

    path: Path
    digest: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: tuple[str, ...] = ()
    zero_points: tuple[int, ...] = ()
    origin: Origin | None = None


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Real inputs for INT8: a tensor folder (``0.npy``, ``1.npy`` ... of shape [count, *input shape])."""

    path: Path
    digest: str
    count: int


@dataclass(frozen=True, kw_only=True)
class Int8Options:
    """How INT8 variants are made; the same for all engines.

    A layer is known by the name of its ONNX node's first output tensor, which is unique. `keep_float` are layers that
    stay in float, `wide` those whose activations get 16 bits where the engine has that (elsewhere they stay in
    float). `ranges` is how activation ranges are chosen; "auto" is the engine's best. `surface` is what inputs and
    outputs are where the engine's format leaves the choice (a .tflite); ONNX Runtime's and ncnn's are float.
    """

    effort: Literal["fast", "normal", "high"] = "normal"
    ranges: Literal["auto", "minmax", "average", "percentile", "entropy", "mse"] = "auto"
    keep_float: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    surface: Literal["int8", "float"] = "int8"
    seed: int = 0
    memory_mb: int = 400


DEFAULT_INT8 = Int8Options()


@dataclass(frozen=True, kw_only=True)
class Binding:
    """How one tensor of the source model appears inside an engine's file.

    ``engine = quantize(transpose(source, perm)).reshape(shape)`` where quantize is
    ``round(x / scale) + zero_point`` saturated to ``dtype`` when ``scale`` is set, a plain cast otherwise.
    Outputs go the other way.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    perm: tuple[int, ...]
    scale: float | None = None
    zero_point: int = 0


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """Engine files of one variant, in a folder with an ``artifact.json`` that holds these fields.

    ``inputs`` and ``outputs`` are in the order of the source model's. ``layers`` names the engine's
    layer types and other parts that its runtime must be built with (ncnn); empty elsewhere.
    """

    folder: Path
    files: tuple[str, ...]
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    layers: tuple[str, ...] = ()
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Why an engine can't take a model, known before any long step."""

    node: str
    op: str
    message: str
    hint: str


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What a variant's outputs must reach against the source's. ``None`` switches a check off."""

    cosine: float = 0.999
    sqnr_db: float | None = None
    top1: float | None = None


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One output compared with the source's over all samples.

    ``cosine`` and ``sqnr_db`` (10 log10 of signal power over error power) are pooled over the samples,
    ``cosine_min`` is the worst sample's, ``top1`` the share of samples with the same arg-max
    (``None`` where the output is not classifier-like).
    """

    output: str
    cosine: float
    cosine_min: float
    sqnr_db: float
    max_abs: float
    top1: float | None
    finite: bool


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """All outputs of one variant against the source, and whether they hold the bound."""

    metrics: tuple[Metric, ...]
    bound: Bound
    samples: int
    passed: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class GateSpec:
    """What a variant's outputs must reach on evaluation data, and what INT8 may do to get there.

    `metric` is "top1", "cosine", "sqnr" or ``module:function``. `max_drop` is how much less than the float model's
    score is allowed, in the metric's unit (percentage points, cosine, the function's own); `min_sqnr` the least SQNR
    in dB. `data` is None where there is no gate beyond the target's bounds. `repair` says whether layers may stay in
    float, with at most `max_float_macs` percent of the multiply-accumulates.
    """

    metric: str = ""
    max_drop: float | None = None
    min_sqnr: float | None = None
    data: Path | None = None
    repair: bool = True
    max_float_macs: float = 5.0


NO_GATE = GateSpec()


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """A variant's score on the evaluation data. `limit` is the least score; `source` the float model's own.

    `score` is None where it couldn't be told; `reason` then says why. `labelled` is False where the float model's
    answers stand in for labels.
    """

    metric: str
    unit: str
    score: float | None
    source: float
    limit: float
    samples: int
    labelled: bool
    passed: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class KeptFloat:
    """A layer that an INT8 variant computes in float: its operator, and its shares of the model's MACs and weights.

    ``single_db`` is the SQNR of the model's outputs when only this layer is quantized.
    """

    layer: str
    op: str
    macs: float
    weights: float
    single_db: float


@dataclass(frozen=True, kw_only=True)
class Int8Facts:
    """How an INT8 variant was made. Sizes are bytes of the engine's files, `full_int8_size` with no layer in float."""

    effort: str
    ranges: str
    kept_float: tuple[KeptFloat, ...] = ()
    tries: int = 0
    size: int = 0
    full_int8_size: int = 0


@dataclass(frozen=True, kw_only=True)
class Target:
    """A device profile: one TOML of ``targets/``. ``absent`` maps an engine to why it is not offered.

    ``size`` is what compiled code is optimised for, "fast" or "small". ``static`` links engines that are compiled from
    source into a static program. ``libraries`` maps an engine to a shared library of the user's own, by absolute path.
    """

    name: str
    description: str
    arch: str
    os: str
    libc: str
    libc_version: str
    glibcxx: str
    cpu: str
    cpu_features: tuple[str, ...]
    clusters: tuple[tuple[str, int], ...]
    engines: tuple[str, ...]
    absent: dict[str, str]
    precisions: tuple[Precision, ...]
    memory_mb: int
    bounds: dict[Precision, Bound]
    emulator_cpu: str
    cmake_toolchain_file: str | None = None
    size: str = "fast"
    static: bool = True
    libraries: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Compiler:
    """A C++ compiler for one target, ready for CMake. ``digest`` identifies it in cache keys."""

    toolchain: str
    description: str
    digest: str
    cmake_args: tuple[str, ...]
    sysroot: Path | None = None
    static: bool = False
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class RuntimeSpec:
    """What a harness needs of one engine: C++ backend source, CMake arguments, libraries to ship.

    ``libraries`` maps the file name in the bundle's ``lib/`` to the file; ``licences`` likewise. ``cpu_features`` are
    what its code needs of the CPU beyond the architecture's base. ``full_size`` are the bytes of the whole engine where
    less of it ships: of its library, or of the harness with all of it linked in; 0 where that isn't known.
    """

    backend: str
    version: str
    cmake_args: tuple[str, ...] = ()
    libraries: dict[str, Path] = field(default_factory=dict)
    licences: dict[str, Path] = field(default_factory=dict)
    cpu_features: tuple[str, ...] = ()
    full_size: int = 0
    digest: str = ""


@dataclass(frozen=True, kw_only=True)
class Completed:
    """A program that ran to its end."""

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One engine at one precision; ``str()`` is its name in bundles and on the command line.

    ``input_set`` is "" for the shapes of ``--input``.
    """

    engine: str
    precision: Precision
    input_set: str = ""

    def __str__(self) -> str:
        return at_set(f"{self.engine}-{self.precision}", self.input_set)


def at_set(name: str, input_set: str) -> str:
    """What `name` is called for an input set: ``ncnn-int8@wide``, ``golden@wide``; as it is for none."""
    return f"{name}@{input_set}" if input_set else name


def set_of(variant: str) -> str:
    """The input set in a variant's name, "" for none."""
    return variant.partition("@")[2]


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """The harness on the golden samples: how it was run (``native``, ``emulated``) or why it was not."""

    how: str
    passed: bool | None
    detail: str = ""
    metrics: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one planned variant, with a reason that a user can act on."""

    variant: Variant
    status: Status
    reason: str = ""
    hint: str = ""
    size: int = 0
    runtime_size: int = 0
    full_size: int = 0
    verdict: Verdict | None = None
    self_test: SelfTest | None = None
    host_latency_ms: float | None = None
    seconds: float = 0.0
    artifact: Artifact | None = None
    gate: GateResult | None = None
    int8: Int8Facts | None = None


@dataclass(frozen=True, kw_only=True)
class BundleFile:
    """One file of a bundle: POSIX path relative to it, digest, size, and what it is for."""

    path: str
    sha256: str
    size: int
    role: str


@dataclass(frozen=True, kw_only=True)
class Device:
    """One entry of a devices.toml.

    ``target`` is a profile's name or path. ``address`` is ``user@host[:port]`` for ssh, the serial for adb and empty
    for this machine. ``root`` is the folder on the device ("" = the transport's default; a relative one starts at
    the login folder). ``options`` are the transport's own.
    """

    name: str
    target: str
    transport: str
    address: str = ""
    root: str = ""
    tags: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What one round trip tells of a device; "", 0 and () stand for what it doesn't say.

    ``machine`` is ``uname -m``; ``libc`` is ``glibc``, ``musl`` or ``bionic``; ``glibcxx`` is like ``3.4.30``.
    ``clusters`` are (core name, count), slowest first; ``cpus`` are (index, largest kHz, governor); ``temperatures``
    are (zone type, millidegree Celsius). ``free_bytes``, ``writable``, ``noexec`` and
    ``symlinks`` speak of the device's root folder; ``npu`` names a driver; ``clock`` is the device's time in seconds
    since the epoch.
    """

    machine: str
    kernel: str
    os: str
    libc: str
    libc_version: str
    glibcxx: str
    cpu_features: tuple[str, ...]
    clusters: tuple[tuple[str, int], ...]
    cpus: tuple[tuple[int, int, str], ...]
    memory_mb: int
    free_bytes: int
    temperatures: tuple[tuple[str, int], ...]
    tools: frozenset[str]
    writable: bool
    noexec: bool
    symlinks: bool = True
    npu: str
    clock: int


@dataclass(frozen=True, kw_only=True)
class MeasuredBlock:
    """One process of a measurement: its timed runs in ns, of which the first `warmup` don't count.

    ``position`` counts the blocks of all variants in the order in which they ran, ``round`` the ABBA rounds.
    """

    position: int
    round: int
    warmup: int
    samples_ns: tuple[int, ...]
    load_ns: int | None
    first_ns: int | None
    peak_rss_bytes: int | None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One figure with all that is needed to understand it; one line of results.jsonl.

    ``session`` is shared by what was measured interleaved; only these may be compared. ``how`` is ``native`` or
    ``emulated``; an emulated figure has no rank. What ``valid`` is false for, ``reason`` says. ``statistics`` and
    ``comparisons`` follow from the blocks of the session's records.
    """

    schema: int
    time: str
    session: str
    edgepack: str
    model: str
    bundle: str
    target: str
    variant: str
    engine: str
    engine_version: str
    precision: str
    threads: int
    cores: str
    allowed_cpus: str
    harness_sha256: str
    model_sha256: str
    device: Mapping[str, Any]
    how: str
    emulator: str
    conditions: Mapping[str, Any]
    blocks: tuple[MeasuredBlock, ...]
    warmup_rounds: int
    statistics: Mapping[str, Any]
    comparisons: tuple[Mapping[str, Any], ...]
    rank: int | None
    valid: bool
    reason: str
    attempts: tuple[str, ...]
    notes: tuple[str, ...]
