"""`edgepack bench`: figures of a bundle's variants on a device."""

from __future__ import annotations

from pathlib import Path

import click


def _threads(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
    try:
        counts = tuple(int(part) for part in value.split(","))
    except ValueError:
        counts = ()
    if not counts or not all(1 <= count <= 256 for count in counts):
        raise click.BadParameter("numbers from 1 to 256, such as 1,4")
    return counts


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--device", default="local", show_default=True, help="A name of devices.toml.")
@click.option("--variant", "variants", multiple=True, help="Only this variant (repeatable).")
@click.option(
    "--threads", default="1", show_default=True, metavar="1,4", callback=_threads, help="Each of these counts."
)
@click.option("--cores", default="all", show_default=True, metavar="big|little|all|4-7", help="CPUs to run on.")
@click.option(
    "--min-time", type=click.FloatRange(0.1, 3600), default=5.0, show_default=True, help="Seconds of each variant."
)
@click.option("--results", type=click.Path(path_type=Path, dir_okay=False), help="Append each figure to this .jsonl.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def bench(
    bundle: Path,
    device: str,
    variants: tuple[str, ...],
    threads: tuple[int, ...],
    cores: str,
    min_time: float,
    results: Path | None,
    as_json: bool,
) -> None:
    """Measure BUNDLE's variants on a device, interleaved, and compare them.

    Exit code 1: the figures are not valid (the table says why). Exit code 6: a variant failed on the device.
    """
    import json

    from edgepack import bench as measuring
    from edgepack import inventory, places, records, report
    from edgepack.bundle import open_bundle

    opened = open_bundle(bundle)
    with places.place(inventory.find(device), opened, variants) as place:
        result = measuring.bench(place, opened, variants=variants, threads=threads, cores=cores, min_time=min_time)
    if results is not None:
        records.append(results, result.measurements)
    if as_json:
        document = report.document(
            "bench",
            seconds=round(result.seconds, 3),
            measuring_seconds=round(result.measuring_seconds, 3),
            measurements=[records.document(m) for m in result.measurements],
            failures=[{"variant": c.variant, "threads": c.threads, "reason": why} for c, why in result.failures],
        )
        click.echo(json.dumps(document, allow_nan=False))
    else:
        click.echo(records.table(result))
    if result.failures:
        raise click.exceptions.Exit(6)
    if not all(m.valid for m in result.measurements):
        raise click.exceptions.Exit(1)
