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
            click.option("--calib", type=click.Path(path_type=Path), help="Real inputs for INT8: images or .npz."),
            click.option("--samples", type=click.Path(path_type=Path), help="Real inputs to verify with."),
            click.option("--input", "inputs", multiple=True, metavar="NAME=1x3x224x224", help="Shape of an input."),
            click.option("--preprocess", type=click.Path(path_type=Path), help="How images become inputs (TOML)."),
            click.option("--engine", "engines", multiple=True, help="Only this engine (repeatable)."),
            click.option(
                "--precision", "precisions", multiple=True, type=click.Choice(["fp32", "fp16", "int8"]),
                help="Only this precision (repeatable).",
            ),
            click.option("--weights", type=click.Path(path_type=Path), help="State dict for package.module:factory."),
            click.option("--python", type=click.Path(path_type=Path), help="Interpreter that has the model's code."),
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

    MODEL is an .onnx file, a .pt2 or TorchScript file, or package.module:factory.
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
    if result.bundle is None:
        _fail(3)
    if named_failures(plan, result.outcomes):
        _fail(1)


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
    calib: Path | None,
    preprocess: Path | None,
    precisions: tuple[str, ...],
    **rest: Any,
) -> BuildPlan:
    from edgepack import config
    from edgepack.plan import make_plan, parse_input
    from edgepack.types import Precision

    parsed = [parse_input(text) for text in inputs]
    return make_plan(
        model,
        config.load_target(target),
        shapes={name: shape for name, shape, _ in parsed},
        dtypes={name: dtype for name, _, dtype in parsed if dtype},
        calibration=calib,
        preprocess=config.load_preprocess(preprocess) if preprocess else None,
        precisions=tuple(Precision(p) for p in precisions),
        **rest,
    )


if __name__ == "__main__":
    main()
