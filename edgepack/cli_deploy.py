"""`edgepack deploy` and `edgepack rollback`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--device", "-d", "names", multiple=True, metavar="NAME[,NAME]", help="Where to (repeatable).")
@click.option("--tag", "tags", multiple=True, help="Every device with this tag (repeatable).")
@click.option("--variant", "variants", multiple=True, help="Only this variant, such as ncnn-int8 (repeatable).")
@click.option("--dry-run", is_flag=True, help="Say what would be sent; change nothing.")
@click.option("--resume", is_flag=True, help="Leave out devices that an earlier call for this bundle finished.")
@click.option(
    "--timeout", type=click.FloatRange(1, 86400), default=300.0, show_default=True, metavar="SECONDS",
    help="Longest time that the self-test of one variant may take for a sample.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def deploy(
    bundle: Path,
    names: tuple[str, ...],
    tags: tuple[str, ...],
    variants: tuple[str, ...],
    dry_run: bool,
    resume: bool,
    timeout: float,
    as_json: bool,
) -> None:
    """Install BUNDLE on devices, prove it there, then switch to it.

    The version before stays active until every variant has passed its self-test on the device, and stays there for
    `edgepack rollback`.
    """
    from edgepack import fleet, inventory, report
    from edgepack.bundle import open_bundle
    from edgepack.device import DeviceSession
    from edgepack.errors import PartlyFailed, UsageError

    each = tuple(name for listed in names for name in listed.split(",") if name)
    if not each and not tags:
        raise UsageError("`edgepack deploy` needs a device.", "Give --device NAME or --tag TAG; see edgepack devices.")
    devices = inventory.select(each, tags)
    opened = open_bundle(bundle)
    if len(devices) == 1 and not resume:
        with DeviceSession.open(devices[0], self_test_seconds=timeout) as session:
            deployed = fleet.document(session.deploy(opened, variants, dry_run=dry_run))
        _print(report.document("deploy", bundle=str(bundle), **deployed), as_json, _line(deployed))
        return
    outcomes = fleet.deploy(opened, devices, variants, dry_run=dry_run, resume=resume, self_test_seconds=timeout)
    failed = [outcome.device for outcome in outcomes if outcome.failed]
    content: dict[str, Any] = report.document(
        "deploy",
        bundle=str(bundle),
        devices=[{"device": o.device, "status": o.status, **o.detail} for o in outcomes],
    )
    lines = [_line(o.detail) if not o.failed else f"{o.device}: failed: {o.detail['message']}" for o in outcomes]
    if failed:
        error = PartlyFailed(
            f"{len(failed)} of {len(outcomes)} devices failed: {', '.join(failed)}.",
            "The others are done. The same command with --resume goes on with these only.",
        )
        content["error"] = {"id": error.id, "message": error.message, "hint": error.hint, "exit_code": error.exit_code}
        sys.stderr.write(f"error {error.id}: {error.message}\n  {error.hint}\n")
    _print(content, as_json, "\n".join(lines))
    if failed:
        raise click.exceptions.Exit(PartlyFailed.exit_code)


@click.command()
@click.argument("model")
@click.option("--device", "-d", "name", required=True, help="Where.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def rollback(model: str, name: str, as_json: bool) -> None:
    """Switch MODEL (a bundle's name) on a device back to the version that was active before.

    A second rollback switches forward again.
    """
    from edgepack import inventory, report
    from edgepack.device import DeviceSession

    with DeviceSession.open(inventory.find(name)) as session:
        before, now = session.rollback(model)
    facts = {"device": name, "model": model, "from": before, "to": now}
    text = f"{name}: {model} is back at {now[:12]} (was {before[:12]})"
    _print(report.document("rollback", **facts), as_json, text)


def _line(deployed: dict[str, Any]) -> str:
    what = f"{deployed['device']}: {deployed['model']} {deployed['digest'][:12]}"
    if deployed["status"] == "unchanged":
        return f"{what} is there already"
    amount = f"{deployed['files']} files, {deployed['sent'] / 1e6:.1f} MB"
    if deployed["status"] == "planned":
        return f"{what} would be sent ({amount})"
    previous = deployed["previous"]
    tests = len(deployed["self_tests"])
    kept = f"; {previous[:12]} is kept for `edgepack rollback`" if previous else ""
    return f"{what} is active ({amount}, {tests} self-test{'s' * (tests != 1)} passed){kept}"


def _print(document: dict[str, Any], as_json: bool, text: str) -> None:
    from edgepack.cli import _print as print_result

    print_result(document, as_json, text)
