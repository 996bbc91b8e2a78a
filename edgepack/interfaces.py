"""The seams: what a plugin implements, as narrow as it can be.

A *tensor folder* is a directory with ``0.npy``, ``1.npy`` ..., one file per model input (or output) in the
model's order, each of shape [samples, *tensor shape] and C order. It is how arrays travel between steps and
child processes: names of tensors come from the model and never become file names.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from edgepack.types import (
    Artifact,
    Calibration,
    Compiler,
    Completed,
    Int8Options,
    Model,
    Precision,
    Problem,
    RuntimeSpec,
    Target,
    TensorSpec,
)


@runtime_checkable
class Importer(Protocol):
    """Turns one kind of source into ONNX and runs the source in its own framework.

    It may also have ``quantized(source)``, which says whether the source has scales of its own: its INT8 variants then
    need no calibration, and there are no others. ``model.json`` may name an ``origin`` (see `types.Origin`: ``engine``,
    ``file``, ``precision``) and ``zero_points`` of quantized outputs.
    """

    name: str
    version: str
    tools: tuple[str, ...]  # converter scripts that it runs; their digests go into the cache key

    def accepts(self, source: str) -> bool:
        """Say whether this importer is meant for `source` (a path or ``package.module:factory``)."""

    def digest(self, source: str, options: Mapping[str, Any]) -> str:
        """SHA-256 over every byte of the source that decides the result."""

    def to_onnx(
        self,
        source: str,
        shapes: Mapping[str, tuple[int, ...]],
        options: Mapping[str, Any],
        out: Path,
    ) -> None:
        """Write ``out/model.onnx`` (one file, fixed shapes) and ``out/model.json``.

        The latter holds ``opset``, ``inputs``, ``outputs`` (name, dtype, shape each) and ``operators``.
        """

    def reference(
        self,
        source: str,
        model: Model,
        options: Mapping[str, Any],
        samples: Path,
        out: Path,
    ) -> None:
        """Run the source in its own framework on the tensor folder `samples`; write a tensor folder to `out`."""


@runtime_checkable
class OneProcessImporter(Importer, Protocol):
    """An importer whose framework takes long to start, and so can do both at once."""

    def known_inputs(
        self, source: str, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]
    ) -> tuple[TensorSpec, ...]:
        """The model's inputs, where they are known without the framework, else nothing."""

    def to_onnx_and_reference(
        self,
        source: str,
        shapes: Mapping[str, tuple[int, ...]],
        options: Mapping[str, Any],
        samples: Path,
        out: Path,
        outputs: Path,
    ) -> bool:
        """`to_onnx`; and True when `outputs` has what `reference` writes, for a model with the known inputs."""


@runtime_checkable
class GraphPass(Protocol):
    """Rewrites an ONNX file; the pipeline keeps the result only when outputs stay equal."""

    name: str
    version: str
    tools: tuple[str, ...]

    def __call__(self, model: Model, out: Path) -> None:
        """Write ``out/model.onnx``."""


@runtime_checkable
class Quantizer(Protocol):
    """Makes a QDQ ONNX model."""

    name: str
    version: str

    def quantize(self, model: Model, calibration: Calibration, int8: Int8Options, out: Path) -> None:
        """Write ``out/model.onnx`` with QuantizeLinear/DequantizeLinear pairs."""


@runtime_checkable
class Engine(Protocol):
    """One inference engine: exports its files, runs them on the host, and tells what its harness needs.

    It may also have ``build_config(artifacts, out)``, which writes to `out` what a user needs for building a smaller
    engine for these artifacts (by variant name), and ``build_config_tools``, the converter scripts for it. One that can
    show what its INT8 computes inside has ``layers(floating, made, samples, count, out)``, which gives the fields of
    `edgepack.explain.Real` by layer, and ``layer_tool``, the converter script for it. With
    ``keeps_scales = True`` it takes sources that are quantized already as its INT8 variant.
    """

    name: str
    version: str
    int8: Literal["qdq", "own", "none"]
    runtime_needs_layers: bool  # whether its harness can only be built once the models' layers are known

    def tools(self, precision: Precision) -> tuple[str, ...]:
        """Converter scripts that export and run use at `precision`; their digests go into the cache key."""

    def base(self, precision: Precision) -> Precision | None:
        """The precision whose exported folder `export` starts from, or None for the ONNX model itself."""

    def problems(self, model: Model, precision: Precision) -> list[Problem]:
        """What is known to fail, before any long step."""

    def export(
        self,
        model: Model,
        precision: Precision,
        calibration: Calibration | None,
        base: Path | None,
        out: Path,
        int8: Int8Options = ...,
    ) -> None:
        """Write the engine's files and ``artifact.json`` (see `edgepack.artifact`) to `out`.

        `int8` says how int8 is made; other precisions ignore it.
        """

    def run(self, artifact: Artifact, model: Model, inputs: Path, out: Path) -> dict[str, Any]:
        """Run on the host with the real engine: tensor folder in, tensor folder out, in the source's layout.

        Returns facts about the run; ``latency_ms`` is the median of the timed runs on this host.
        Raises `VariantError` when the engine can't load or run the files.
        """

    def runtime(self, target: Target, layers: tuple[str, ...], precisions: tuple[Precision, ...]) -> RuntimeSpec:
        """What to compile and ship for variants of `precisions` whose artifacts name `layers`.

        Raises `VariantError` where the engine has no library for the target.
        """


@runtime_checkable
class Toolchain(Protocol):
    """Finds a C++ compiler for a target."""

    name: str
    version: str

    def locate(self, target: Target, *, static: bool) -> Compiler | None:
        """Return a compiler that is there (or can be prepared), or None; `static` asks for a static program."""

    def advice(self, target: Target) -> str:
        """What to install so that `locate` finds one, in one sentence."""


@runtime_checkable
class Transport(Protocol):
    """The only way to a device: run, push, pull, close. Made by calling the plugin's class with a `Device`.

    The link is opened on first use, and again on the first use after it was lost. Every method raises
    `DeviceUnreachable` when there is no link or it fails on the way.
    """

    name: str
    version: str

    def run(self, argv: list[str], timeout: float, *, stdin: bytes | None = None) -> Completed:
        """Run a program on the device to its end; `argv` is data, the transport quotes it.

        A non-zero exit is not an error here. Raises `process.TimedOut` after `timeout` seconds; the program on the
        device is killed then.
        """

    def push(self, local: Path, remote: str, *, offset: int = 0) -> None:
        """Append `local`'s bytes from `offset` on to the file `remote`, which is made anew when `offset` is 0.

        A link that is cut leaves a valid prefix of `local`.
        """

    def pull(self, remote: str, local: Path) -> None:
        """Copy one file from the device."""

    def close(self) -> None:
        """Let go of the connection."""
