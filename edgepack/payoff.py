"""Whether INT8 pays: it against the same engine's fastest float variant, by what was measured and by nothing else.

Build's own times are a few runs on this machine beside other work: they can say that INT8 was not faster, never that
it is. Records of `edgepack bench` for the same bundle are interleaved and have intervals: they say either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edgepack.types import Measurement, Outcome, Precision, Status

if TYPE_CHECKING:
    from pathlib import Path

CLEARLY = 0.95  # INT8 must take less than this share of float's time for build's few runs to be no warning


def notes(outcomes: Sequence[Outcome], digest: str, results: Path | None) -> list[str]:
    """Sentences on every INT8 variant that was built; `results` is a results.jsonl, or None."""
    device = on_devices(digest, results) if results is not None and digest else []
    return [*on_this_host(outcomes), *device]


def on_this_host(outcomes: Sequence[Outcome]) -> list[str]:
    """Where INT8 was not faster in build's own runs."""
    said = []
    timed = [(o, o.host_latency_ms) for o in outcomes if o.status is Status.BUILT and o.host_latency_ms is not None]
    for int8, spent in timed:
        if int8.variant.precision is not Precision.INT8:
            continue
        floats = [
            (ms, str(o.variant))
            for o, ms in timed
            if (o.variant.engine, o.variant.input_set) == (int8.variant.engine, int8.variant.input_set)
            and o.variant.precision is not Precision.INT8
        ]
        if floats and spent >= CLEARLY * min(floats)[0]:
            ms, name = min(floats)
            said.append(
                f"{int8.variant} was not clearly faster than {name} ({spent:.2f} against {ms:.2f} ms, "
                f"x{spent / ms:.2f}): a few runs on this host, not on the device."
            )
    return said


def on_devices(digest: str, results: Path) -> list[str]:
    """What records of the bundle `digest` say: of each device and variant, the latest session that compares it."""
    from edgepack import records

    found = [m for m in records.read(results) if m.bundle == digest and m.valid and m.how == "native"]
    latest: dict[tuple[str, str, int], tuple[tuple[str, str], str]] = {}
    for int8 in (m for m in found if m.precision == Precision.INT8):
        floats = [m for m in found if m.session == int8.session and _comparable(int8, m)]
        if floats:
            device, when = str(int8.device["name"]), (int8.time, int8.session)
            told = f"on {device}: {_versus(int8, min(floats, key=lambda m: m.statistics['median_ns']))}"
            key = device, int8.variant, int8.threads
            latest[key] = max(latest.get(key, (("", ""), "")), (when, told))
    return [told for _, (_, told) in sorted(latest.items())]


def _comparable(int8: Measurement, other: Measurement) -> bool:
    same = other.engine == int8.engine and other.threads == int8.threads
    return same and other.precision != Precision.INT8 and _told(int8, other) is not None


def _told(int8: Measurement, other: Measurement) -> dict[str, object] | None:
    from edgepack import records

    return next((dict(c) for c in int8.comparisons if c["with"] == records.name(other)), None)


def _versus(int8: Measurement, other: Measurement) -> str:
    told = _told(int8, other)
    assert told is not None
    verdict = {"faster": "faster than", "slower": "slower than"}.get(str(told["verdict"]), "no faster than")
    return f"{int8.variant} x{int8.threads} is {verdict} {other.variant} ({told['ratio']:.2f} times as long)"
