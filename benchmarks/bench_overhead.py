"""What `edgepack bench` of one variant takes besides the measuring itself, over a real sshd on loopback.

    python benchmarks/bench_overhead.py [--runs 9]

The bundle is there already. "Measuring" is the time of the harness's processes, from the device's clock; the rest is
connecting, the probe, the look, the lock, the scripts, and giving the lock back. Needs sshd and a C compiler.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from edgepack import bench, log, places
from edgepack.device import DeviceSession
from tests import sshd
from tests.devices import make_bundle
from tests.integration.test_bench import compiled


def main(runs: int, folder: Path) -> None:
    (folder / "sshd").mkdir()
    bundle = make_bundle(folder / "b.edgepack", compiled(folder))
    bench.REDO = 0
    rest = []
    with sshd.running(folder / "sshd") as server:
        device = replace(server.device(), root=str(folder / "device"))
        with DeviceSession.open(device) as session:
            session.deploy(bundle)
        for _ in range(runs):
            started = time.monotonic()
            with places.place(device, bundle) as place:
                result = bench.bench(place, bundle, min_time=1.0)
            rest.append(time.monotonic() - started - result.measuring_seconds)
    print(
        json.dumps(
            {
                "seconds besides measuring": [round(each, 2) for each in sorted(rest)],
                "median": round(statistics.median(rest), 2),
                "load": round(os.getloadavg()[0], 1),
            }
        )
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    asked = parser.parse_args()
    log.configure(quiet=True)
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as scratch:
        main(asked.runs, Path(scratch))
