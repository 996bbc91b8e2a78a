"""How often does the comparison of `edgepack bench` see a difference that isn't there, and miss one that is?

    python benchmarks/aa.py simulated            # a device that warms up: interleaved against A first, then B
    python benchmarks/aa.py real [--trials 100] [--min-time 1]

`real` measures a stand-in for a harness (a loop of N dependent multiplications, compiled here) by the same code as
`edgepack bench` does on the device `local`: A against A, and A against B that does 5 % more work. Every trial counts,
also those which `edgepack bench` would repeat because the machine drifted.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

from edgepack import stats
from edgepack.bench import Attempt, Case, Plan, interleaved
from edgepack.figures import versus
from edgepack.inventory import find
from edgepack.measuring import Block, Place, State
from edgepack.probe import probe
from edgepack.transports import connect

STANDIN = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}
static volatile uint64_t sink;
static void work(long n) {
  uint64_t x = 88172645463325252ULL;
  for (long i = 0; i < n; ++i) x = x * 6364136223846793005ULL + 1442695040888963407ULL;
  sink = x;
}
int main(int argc, char** argv) {
  long n = 0, least = 1, count = 0;
  double seconds = 0;
  for (int i = 2; i + 1 < argc; i += 2) {
    if (!strcmp(argv[i], "--variant")) n = atol(strrchr(argv[i + 1], '-') + 1);
    if (!strcmp(argv[i], "--min-seconds")) seconds = atof(argv[i + 1]);
    if (!strcmp(argv[i], "--min-runs")) least = atol(argv[i + 1]);
  }
  static int64_t samples[1000000];
  work(n);
  const int64_t start = now();
  int64_t before = start;
  do {
    work(n);
    const int64_t after = now();
    samples[count++] = after - before;
    before = now();
  } while (count < 1000000 && (count < least || before - start < seconds * 1e9));
  printf("{\"type\":\"context\",\"engine_version\":\"1\",\"load_ns\":1}\n");
  for (long i = 0; i < count; ++i)
    printf("{\"type\":\"sample\",\"variant\":0,\"block\":0,\"ns\":%lld}\n", (long long)samples[i]);
  printf("{\"type\":\"end\",\"status\":\"ok\",\"peak_rss_bytes\":1}\n");
}
"""


def warming(rng: np.random.Generator, effect: float, mixed: bool) -> str:
    """One comparison on a simulated device.

    12 % slower when warm (after 4 s), 1 % between processes, 2 % and spikes in 3 % between runs.
    """
    order = interleaved(2, stats.rounds_needed(stats.LEVEL / 2))
    if not mixed:
        order = [(turn, case) for case in (0, 1) for turn, each in order if each == case]
    now, attempt, none = 0.0, Attempt(), State(uptime=0, load=0)
    for turn, case in order:
        level = 1e6 * (1 + 0.12 * (1 - np.exp(-now / 4.0))) * (1 + effect * case) * np.exp(rng.normal(0, 0.01))
        runs = level * np.exp(rng.normal(0, 0.02, 150)) * (1 + (rng.random(150) < 0.03) * rng.exponential(2, 150))
        now += runs.sum() / 1e9
        block = Block(
            program=case, context={}, samples=tuple(int(run) for run in runs), load_ns=None, first_ns=None,
            peak_rss_bytes=None, error="", before=none, after=none,
        )  # fmt: skip
        attempt.blocks.setdefault(case, []).append((0, turn, block))
    return versus(attempt, [0, 1])[0, 1][1].verdict


def simulated(trials: int) -> None:
    rng = np.random.default_rng(4)
    for mixed in (True, False):
        for effect in (0.0, 0.05):
            verdicts = Counter(warming(rng, effect, mixed) for _ in range(trials))
            name = "interleaved" if mixed else "A, then B"
            print(f"warming device, {name:<11}  B {effect:+.0%}: {dict(verdicts)} of {trials}")


def real(trials: int, min_time: float, folder: Path) -> None:
    (folder / "bin").mkdir()
    (folder / "standin.c").write_text(STANDIN)
    subprocess.run(["cc", "-O2", "-o", folder / "bin/edgepack-standin", folder / "standin.c"], check=True)
    device = find("local")
    transport = connect(device)
    place = Place(
        device=device,
        probe=probe(transport, device),
        transport=transport,
        root=str(folder / "root"),
        folder=str(folder),
    )
    n = 400_000
    found: dict[float, list[tuple[str, float, bool]]] = {0.0: [], 0.05: []}
    started, loads = time.monotonic(), []
    for trial in range(trials):
        for effect, results in found.items():
            works = (n, round(n * (1 + effect)))
            cases = [
                Case(variant=f"{k}-{work}", engine="standin", precision="fp32", threads=1)
                for k, work in zip("ab", works, strict=True)
            ]
            plan = Plan(place=place, cases=cases, min_time=min_time, mask="")
            attempt = plan.run((0, 0))
            _, comparison = versus(attempt, [0, 1])[0, 1]
            results.append((comparison.verdict, comparison.ratio, bool(attempt.doubts)))
        loads.append(os.getloadavg()[0])
        if (trial + 1) % 10 == 0 or trial + 1 == trials:
            line = {"trials": trial + 1, "seconds": round(time.monotonic() - started), "load": [min(loads), max(loads)]}
            for effect, results in found.items():
                ratios = [ratio for _, ratio, _ in results]
                line[f"B {effect:+.0%}"] = {
                    **Counter(verdict for verdict, _, _ in results),
                    "doubted": sum(doubt for _, _, doubt in results),
                    "called among not doubted": sum(v != "tie" for v, _, doubt in results if not doubt),
                    "ratio": [round(float(np.quantile(ratios, q)), 4) for q in (0.025, 0.5, 0.975)],
                }
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["simulated", "real"])
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--min-time", type=float, default=1.0)
    asked = parser.parse_args()
    if asked.part == "simulated":
        simulated(asked.trials)
    else:
        with tempfile.TemporaryDirectory(prefix="edgepack-aa-") as scratch:
            real(asked.trials, asked.min_time, Path(scratch))
