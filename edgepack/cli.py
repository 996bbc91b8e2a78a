"""The command line: parse, call, print. The only place where an error becomes an exit code.

Nothing heavy is imported here; each command imports what it needs. Commands of a cli_*.py are added at the end.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgepack import __version__, cli_bench, cli_check, cli_deploy, cli_devices

if TYPE_CHECKING:
    from edgepack.plan import BuildPlan

F = TypeVar("F", bound=Callable[..., Any])
BUG = 70
INTERRUPTED = 130


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("-v", "--verbose", is_flag=True, help="Show every command that is run.")
@click.option("-q", "--quiet", is_flag=True, help="Say only warnings and errors.")
def cli(verbose: bool, quiet: bool) -> None:
    """From a trained model to a verified, cross-compiled bundle for an edge device."""
    from edgepack import log

    log.configure(verbose=verbose, quiet=quiet)


def model_options(command: F) -> F:
    """The options that say what to build, shared by `build` and nothing else that guesses."""
    for option in reversed(
        (
            click.option("--target", "-t", required=True, metavar="NAME|FILE.toml", help="Device profile."),
            click.option(
                "--calib", multiple=True, metavar="DIR|NPZ|MODULE:FUNCTION",
                help="Real inputs for INT8: a folder of images, an .npz or .npy, or a Python function; SET:... for "
                "an input set.",
            ),
            click.option(
                "--samples", multiple=True, metavar="DIR|NPZ|MODULE:FUNCTION",
                help="Real inputs to verify with; SET:... for an input set.",
            ),
            click.option("--input", "inputs", multiple=True, metavar="NAME=1x3x224x224", help="Shape of an input."),
            click.option(
                "--input-set", "sets", multiple=True, metavar="SET:NAME=1x3x224x448",
                help="Another shape of an input, for variants of their own in the same bundle.",
            ),
            click.option(
                "--preprocess", type=click.Path(path_type=Path),
                help="How images become inputs (TOML); default: edgepack.toml beside the model.",
            ),
            click.option("--engine", "engines", multiple=True, help="Only this engine (repeatable)."),
            click.option(
                "--precision", "precisions", multiple=True, type=click.Choice(["fp32", "fp16", "int8"]),
                help="Only this precision (repeatable).",
            ),
            click.option(
                "--surface", type=click.Choice(["int8", "float"]), default="int8", show_default=True,
                help="What INT8 files of tflite take and give. (onnxruntime's and ncnn's are float outside.)",
            ),
            click.option(
                "--effort", type=click.Choice(["fast", "normal", "high"]), default="normal", show_default=True,
                help="How much time INT8 may take to get closer to the source.",
            ),
            click.option(
                "--memory", type=click.IntRange(1), metavar="MB", default=400, show_default=True,
                help="Memory that INT8's calibration may take.",
            ),
            click.option(
                "--data", multiple=True, metavar="DIR|NPZ", help="Evaluation data; SET:... for an input set.",
            ),
            click.option("--metric", metavar="top1|cosine|sqnr|module:function", help="What is measured on --data."),
            click.option("--max-drop", type=click.FloatRange(0.0), help="How far below the float model's score."),
            click.option("--min-sqnr", type=float, metavar="DB", help="The least SQNR on --data, in dB."),
            click.option("--repair/--no-repair", default=True, help="Leave layers in float where INT8 misses."),
            click.option(
                "--max-float-macs", type=click.FloatRange(0.0, 100.0), default=5.0, metavar="PERCENT",
                show_default=True,
                help="How much of the work a repair may leave in float.",
            ),
            click.option("--weights", type=click.Path(path_type=Path), help="State dict for package.module:factory."),
            click.option("--python", type=click.Path(path_type=Path), help="Interpreter that has the model's code."),
            click.option("--results", type=click.Path(path_type=Path), help="Figures of `bench`, to compare INT8 by."),
            click.option("--signature", help="Which signature of a SavedModel; default: serving_default."),
            click.option("--name", help="Name of the bundle; default: from the model's file name."),
            click.option("-o", "--output", type=click.Path(path_type=Path), default=Path(), help="Folder for it."),
            click.option("--jobs", "-j", type=click.IntRange(1), help="Steps at the same time; default: cores."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


@cli.command()
@click.argument("model")
@model_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--dry-run", is_flag=True, help="Print the steps and which are cached; do nothing.")
def build(as_json: bool, dry_run: bool, **options: Any) -> None:
    """Turn MODEL into a bundle for a target.

    MODEL is an ONNX, PyTorch (.pt2, TorchScript), Keras (.keras, .h5), TFLite or MXNet (-symbol.json) file, a
    SavedModel folder, or package.module:factory. What a file is, its content says, not its name.
    """
    from edgepack import pipeline, report
    from edgepack.cache import Cache
    from edgepack.plan import named_failures, prepare
    from edgepack.resources import cache_root

    plan = _plan(**options)
    if dry_run:
        states = pipeline.dry_run(plan, cache_root())
        listed = [{"step": title, "state": state} for title, state in states]
        _print(
            report.document("build", dry_run=True, steps=listed), as_json, "\n".join(f"{s:<10} {t}" for t, s in states)
        )
        return
    result = pipeline.build(plan, Cache(cache_root()), prepare(plan))
    _print(report.build_document(result), as_json, report.table(result))
    gated = any(outcome.gate is not None and not outcome.gate.passed for outcome in result.outcomes)
    if result.bundle is None and not gated:
        _fail(3)
    if named_failures(plan, result.outcomes):
        _fail(1)


@cli.command("explain-int8")
@click.argument("model", metavar="MODEL|BUNDLE")
@model_options
@click.option("--model", "source", metavar="MODEL", help="Of BUNDLE: the model that it was made from.")
@click.option("--variant", help="Of BUNDLE: such as ncnn-int8; default: its first in INT8.")
@click.option("--html", "html_file", type=click.Path(path_type=Path, dir_okay=False), help="Write a heat map.")
@click.option("--all", "everything", is_flag=True, help="List every layer, not only the worst.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def explain_int8(
    model: str,
    source: str | None,
    variant: str | None,
    html_file: Path | None,
    everything: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Show every layer's part of the INT8 error of MODEL, or of a variant of BUNDLE."""
    from edgepack import explaining, report
    from edgepack.cache import Cache
    from edgepack.resources import cache_root

    said = None
    if (Path(model) / "manifest.json").is_file():
        said = explaining.of_bundle(Path(model), variant, options["engines"])
        if source is None:
            _print(report.document("explain-int8", **said), as_json, explaining.bundle_text(said))
            return
        options["target"] = options["target"] or said["target"]
    elif source is not None or variant is not None:
        raise click.UsageError("--model and --variant are for a BUNDLE.")
    if options["target"] is None:
        raise click.UsageError("Missing option '--target' / '-t'.")
    plan = _plan(model=source or model, **options)
    facts, found = explaining.of_model(plan, Cache(cache_root()), said)
    if html_file is not None:
        explaining.write_html(html_file, found, plan.name)
    _print(report.document("explain-int8", **facts), as_json, explaining.text(facts, found, 0 if everything else 20))


for _parameter in explain_int8.params:
    if _parameter.name == "target":
        _parameter.required = False  # a bundle knows its target


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--variant", required=True, help="Such as ncnn-int8.")
@click.option(
    "--input", "input_file", required=True, type=click.Path(path_type=Path), help=".npz, keys are input names."
)
@click.option("--output", "output_file", required=True, type=click.Path(path_type=Path), help=".npz to write.")
@click.option("--device", default="local", help="Where to run.")
@click.option("--threads", type=click.IntRange(1), default=1)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def run(
    bundle: Path, variant: str, input_file: Path, output_file: Path, device: str, threads: int, as_json: bool
) -> None:
    """Run one variant of BUNDLE on any input; outputs have the model's own names and layout."""
    from edgepack import report, running

    facts = running.run(bundle, variant, input_file, output_file, device=device, threads=threads)
    text = f"{output_file}: " + ", ".join(f"{o['name']!r} {o['dtype']} {o['shape']}" for o in facts["outputs"])
    _print(report.document("run", **facts), as_json, text + f"  (ran {facts['how']})")


@cli.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--variant", required=True, help="Such as ncnn-int8.")
@click.option("--runs", type=click.IntRange(1, 10000), default=20, help="Timed inferences.", show_default=True)
@click.option("--threads", type=click.IntRange(1, 256), default=1)
@click.option("--cores", default="", metavar="4-7,0", help="CPUs to run on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def profile(bundle: Path, variant: str, runs: int, threads: int, cores: str, as_json: bool) -> None:
    """Show where one variant of BUNDLE spends its time, operator by operator."""
    from edgepack import profiling, report

    facts = profiling.profile(bundle, variant, runs=runs, threads=threads, cores=cores)
    _print(report.document("profile", **facts), as_json, profiling.text(facts))


@cli.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def inspect(path: Path, as_json: bool) -> None:
    """Say what a model or a bundle holds."""
    from edgepack import inspection, report

    facts = inspection.inspect(path)
    _print(report.document("inspect", **facts), as_json, inspection.text(facts))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def targets(as_json: bool) -> None:
    """List the device profiles."""
    from dataclasses import asdict

    from edgepack import config, report

    found = config.list_targets()
    width = max(len(t.name) for t in found)
    lines = [f"{t.name:<{width}}  {t.arch:<8} {', '.join(t.engines):<26} {t.description}" for t in found]
    listed = [{**asdict(t), "bounds": {str(k): asdict(v) for k, v in t.bounds.items()}} for t in found]
    _print(report.document("targets", targets=listed), as_json, "\n".join(lines))


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def doctor(as_json: bool) -> None:
    """Say what this machine has, what is missing, and how to get it."""
    from edgepack import doctor as doctoring
    from edgepack import report

    checks = doctoring.examine()
    _print(report.document("doctor", checks=checks), as_json, doctoring.text(checks))


@cli.command()
@click.option("--target", "-t", help="Only what this target needs; default: everything.")
@click.option("--wheelhouse", type=click.Path(path_type=Path, exists=True, file_okay=False), help="Use no network.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def setup(target: str | None, wheelhouse: Path | None, as_json: bool) -> None:
    """Make the converters' environments and fetch engine libraries ahead of time."""
    from edgepack import preparing, report

    done = preparing.setup(target, wheelhouse)
    _print(report.document("setup", prepared=done), as_json, "\n".join(done))


@cli.command()
@click.option("--target", "-t", default="rk3588", help="Device profile.")
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("demo"), help="Folder for the bundle.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def demo(target: str, output: Path, as_json: bool) -> None:
    """Build a real model from the package index, prove it, and run it as far as this machine can."""
    from edgepack import demo as demonstration
    from edgepack import report

    result, text = demonstration.run(target, output)
    _print(report.build_document(result), as_json, report.table(result) + text)
    if result.bundle is None:
        _fail(3)


cli.add_command(cli_bench.bench)
cli.add_command(cli_deploy.deploy)
cli.add_command(cli_deploy.rollback)
cli.add_command(cli_devices.devices)
cli.add_command(cli_check.command(model_options, lambda **options: _plan(**options)))


def main() -> None:
    """Run the command line and turn every failure into its exit code."""
    from edgepack.errors import EdgepackError

    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    as_json = "--json" in sys.argv[1:]
    try:
        code = cli.main(prog_name="edgepack", standalone_mode=False)  # click returns the code of an Exit
        sys.exit(code if isinstance(code, int) else 0)
    except EdgepackError as error:
        _report(as_json, error.id, error.message, error.hint, error.exit_code, error.log)
    except click.UsageError as error:
        usage = error.ctx.get_usage() + "\n" if error.ctx and not as_json else ""
        sys.stderr.write(usage)
        _report(as_json, "EP200", error.format_message(), "See edgepack --help.", 2)
    except (KeyboardInterrupt, click.Abort):
        _report(as_json, "EP130", "Interrupted. Finished steps are kept.", "The same command goes on from there.", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except MemoryError:
        _report(as_json, "EP411", "This machine has too little memory for the model.", "Close other programs.", 4)
    except Exception as error:
        import traceback

        traceback.print_exc()
        hint = "This is a bug in edgepack. Please report it with the traceback above."
        _report(as_json, "EP700", f"{type(error).__name__}: {error}", hint, BUG)


def _report(as_json: bool, id: str, message: str, hint: str, code: int, log_file: Path | None = None) -> None:
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(f"error {id}: {message}\n")
        if hint:
            sys.stderr.write(f"  {hint}\n")
        if log_file:
            sys.stderr.write(f"  Log: {log_file}\n")
        if as_json:
            content = {"id": id, "message": message, "hint": hint, "exit_code": code}
            click.echo(json.dumps({"schema": 1, "version": __version__, "error": content}))
    sys.stdout.flush()
    sys.exit(code)


def _print(document: dict[str, Any], as_json: bool, text: str) -> None:
    if as_json:
        click.echo(json.dumps(document, indent=1, default=str, allow_nan=False))
    else:
        click.echo(text)


def _fail(code: int) -> None:
    raise click.exceptions.Exit(code)


def _plan(
    *,
    model: str,
    target: str,
    inputs: tuple[str, ...],
    sets: tuple[str, ...],
    calib: tuple[str, ...],
    samples: tuple[str, ...],
    preprocess: Path | None,
    precisions: tuple[str, ...],
    effort: str,
    surface: str,
    memory: int,
    data: tuple[str, ...],
    metric: str | None,
    max_drop: float | None,
    min_sqnr: float | None,
    repair: bool,
    max_float_macs: float,
    **rest: Any,
) -> BuildPlan:
    from edgepack import config, evaluation, input_sets, plugins, project
    from edgepack.plan import make_plan, parse_input
    from edgepack.types import GateSpec, Int8Options, Precision

    declared = project.load(preprocess) if preprocess else project.beside(model)
    parsed = [parse_input(text) for text in inputs]
    further = [(name, *parse_input(text, "--input-set")) for name, text in map(input_sets.split, sets)]
    names = [*(name for name, *_ in further), *(each.name for each in declared.input_sets)]
    given = {"calibration": ("--calib", calib), "samples": ("--samples", samples), "data": ("--data", data)}
    paths = {kind: input_sets.own_data(option, values, names) for kind, (option, values) in given.items()}
    gate = GateSpec(
        metric=metric or ("sqnr" if min_sqnr is not None else "top1" if max_drop is not None else ""),
        max_drop=max_drop,
        min_sqnr=min_sqnr,
        data=paths["data"][0],
        repair=repair,
        max_float_macs=max_float_macs,
    )
    evaluation.check_spec(gate)
    return make_plan(
        model,
        config.load_target(target),
        shapes={**declared.shapes, **{name: shape for name, shape, _ in parsed}},
        dtypes={name: dtype for name, _, dtype in parsed if dtype},
        calibration=paths["calibration"][0],
        samples=paths["samples"][0],
        preprocess=declared.preprocess,
        precisions=tuple(Precision(p) for p in precisions),
        int8=Int8Options(effort=effort, surface=surface, memory_mb=memory),  # type: ignore[arg-type]
        gate=gate,
        sets=input_sets.declare(
            declared.input_sets, further, {kind: own for kind, (_, own) in paths.items()}, plugins.names("engines")
        ),
        **rest,
    )


if __name__ == "__main__":
    main()
