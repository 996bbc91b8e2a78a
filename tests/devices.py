"""Small bundles with a real (compiled) harness, and transports with faults, for the tests of installing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from edgepack import bundle as bundles
from edgepack import config
from edgepack.bundle import Bundle, open_bundle
from edgepack.device import DeviceSession
from edgepack.errors import DeviceUnreachable
from edgepack.transports.local import Local
from edgepack.types import Completed, Device, set_of

# What a harness does is the first word of its variant.txt. `run` copies its input: the model is the identity.
HARNESS = r"""
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static const char* flag(int n, char** v, const char* name) {
  for (int i = 2; i + 1 < n; i += 2) if (!strcmp(v[i], name)) return v[i + 1];
  return ".";
}
int main(int n, char** v) {
  char path[4096], word[64] = "", buffer[65536];
  snprintf(path, sizeof path, "%s/variant.txt", flag(n, v, "--variant"));
  FILE* f = fopen(path, "r");
  if (!f || fscanf(f, "%63s", word) != 1) { fprintf(stderr, "edgepack: no %s\n", path); return 1; }
  if (!strcmp(word, "crash")) abort();
  if (!strcmp(word, "hang")) { sleep(600); return 0; }
  if (!strcmp(v[1], "run")) {
    snprintf(path, sizeof path, "%s/in_0.npy", flag(n, v, "--inputs"));
    f = fopen(path, "rb");
    size_t size = f ? fread(buffer, 1, sizeof buffer, f) : 0;
    snprintf(path, sizeof path, "%s/out_0.npy", flag(n, v, "--outputs"));
    f = fopen(path, "wb");
    if (!f || fwrite(buffer, 1, size, f) != size || fclose(f)) return 1;
  } else {
    const char* set = strchr(flag(n, v, "--variant"), '@');
    const char* golden = strchr(flag(n, v, "--golden"), '@');
    if (strcmp(set ? set : "", golden ? golden : "")) {
      fprintf(stderr, "edgepack: %s are another input set's\n", flag(n, v, "--golden"));
      return 1;
    }
    int good = strcmp(word, "wrong") != 0;
    printf("{\"type\":\"golden\",\"index\":0,\"output\":0,\"status\":\"%s\",\"cosine\":%s,\"sqnr_db\":3}\n",
           good ? "ok" : "failed", good ? "1" : "0.25");
    if (!good) { printf("{\"type\":\"end\",\"status\":\"failed\"}\n"); return 2; }
  }
  printf("{\"type\":\"end\",\"status\":\"ok\"}\n");
  return 0;
}
"""


def compile_harness(folder: Path, compiler: str = "cc", *flags: str) -> Path:
    """The program above for this machine, or by another compiler for another one."""
    source, program = folder / "harness.c", folder / "edgepack-null"
    source.write_text(HARNESS)
    subprocess.run([compiler, "-O1", "-s", "-o", program, source, *flags], check=True)
    return program


def make_bundle(
    folder: Path,
    harness: Path,
    *,
    version: str = "1",
    does: str = "work",
    name: str = "tiny",
    variants: tuple[str, ...] = ("null-fp32",),
    files: Mapping[str, bytes] | None = None,
    target: str = "host",
) -> Bundle:
    """A bundle whose variants hold `version` as their weights; every other file is the same in each version.

    A variant such as null-fp32@wide is of an input set: the first one takes 5 values, the next one 6; without it is 4.
    """
    with bundles.replacing(folder) as scratch:
        (scratch / "bin").mkdir()
        shutil.copyfile(harness, scratch / "bin" / "edgepack-null")
        sets = sorted({set_of(variant) for variant in variants} - {""})
        for size, input_set in enumerate(["", *sets], 4):
            golden = scratch / bundles.golden_of(input_set) / "0"
            golden.mkdir(parents=True)
            np.save(golden / "in_0.npy", np.zeros(size, np.float32))
        for variant in variants:
            (scratch / "variants" / variant).mkdir(parents=True)
            (scratch / "variants" / variant / "variant.txt").write_text(f"{does}\n")
            (scratch / "variants" / variant / "weights.bin").write_text(f"weights {version} of {variant}")
        for path, content in (files or {}).items():
            (scratch / path).parent.mkdir(parents=True, exist_ok=True)
            (scratch / path).write_bytes(content)
        profile = config.load_target(target)
        shapes = {name: {"dtype": "float32", "shape": [size]} for size, name in enumerate(sets, 5)}
        spec = {"name": "x", "dtype": "float32", "shape": [4]}
        facts = {
            "name": name,
            "target": {**asdict(profile), "bounds": {str(k): asdict(v) for k, v in profile.bounds.items()}},
            "inputs": [spec],
            "outputs": [{**spec, "name": "y"}],
            "input_sets": [
                {"name": name, "inputs": [{"name": "x", **how}], "outputs": [{"name": "y", **how}]}
                for name, how in shapes.items()
            ],
            "variants": [
                {
                    "name": v,
                    "engine": "null",
                    "precision": "fp32",
                    "input_set": set_of(v),
                    "harness": "bin/edgepack-null",
                }
                for v in variants
            ],
        }
        bundles.write_manifest(scratch, facts)
    return open_bundle(folder)


class HostKilled(BaseException):
    """Stands for kill -9 of the host: nothing that could tidy up catches it usefully."""


class Link(Local):
    """The local transport with a counter and faults.

    `path` replaces the device's PATH, `env` are variables of its programs. `cut_after` bytes on the way to the device
    the link is lost, once. `at_call` is called with the number of each call before it is made.
    """

    def __init__(
        self,
        device: Device,
        *,
        path: Path | None = None,
        env: Mapping[str, object] | None = None,
        cut_after: int | None = None,
        at_call: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(device)
        self.path = path
        self.env = env or {}
        self.cut_after = cut_after
        self.at_call = at_call
        self.calls = 0
        self.sent = 0
        self.received = 0

    def run(self, argv: list[str], timeout: float, *, stdin: bytes | None = None) -> Completed:
        self._call()
        before = self.sent
        self.sent += sum(len(a) + 1 for a in argv) + len(stdin or b"")
        lost = stdin is not None and self._cut()
        if lost and self.cut_after is not None:
            stdin = stdin[: max(0, self.cut_after - before)]
            self.sent, self.cut_after = self.cut_after, None
        if self.path is not None:
            argv = ["env", "-i", f"PATH={self.path}", *argv]
        argv = [*(["env"] if self.env else []), *(f"{name}={value}" for name, value in self.env.items()), *argv]
        done = super().run(argv, timeout, stdin=stdin)
        if lost:
            raise DeviceUnreachable("The link was cut.", "")
        self.received += len(done.stdout) + len(done.stderr)
        return done

    def push(self, local: Path, remote: str, *, offset: int = 0) -> None:
        self._call()
        before = self.sent
        self.sent += local.stat().st_size - offset
        if not self._cut():
            super().push(local, remote, offset=offset)
            return
        assert self.cut_after is not None
        arrived = self.cut_after - before
        part = Path(f"{remote}.prefix")
        part.write_bytes(local.read_bytes()[: offset + arrived])
        super().push(part, remote, offset=offset)
        part.unlink()
        self.sent, self.cut_after = self.cut_after, None
        raise DeviceUnreachable("The link was cut.", "")

    def _call(self) -> None:
        self.calls += 1
        if self.at_call is not None:
            self.at_call(self.calls)

    def _cut(self) -> bool:
        return self.cut_after is not None and self.sent > self.cut_after


def device(root: Path, name: str = "board") -> Device:
    return Device(name=name, target="host", transport="local", root=str(root))


def session(root: Path, *, name: str = "board", seconds: float = 60.0, **faults) -> DeviceSession:
    entry = device(root, name)
    return DeviceSession(entry, Link(entry, **faults), self_test_seconds=seconds)


def of_a_dead_process(opened: DeviceSession) -> DeviceSession:
    """Let a session's lock be that of a process of this machine that is gone."""
    child = subprocess.Popen(["true"])
    child.wait()
    opened.steps.owner = re.sub(r",\d+,", f",{child.pid},", opened.steps.owner, count=1)
    return opened


def active(root: Path, model: str = "tiny", link: str = "current") -> Bundle:
    """What is active, every byte checked: the manifest's files and nothing else."""
    return open_bundle((root / "models" / model / link).resolve(strict=True))


def check_no_orphans(root: Path) -> None:
    """Nothing in the device's folder that no model needs; no lock, no partial file."""
    linked = {path.readlink().name for path in root.glob("models/*/*")}
    wanted = {"objects", "bundles", "models"}
    assert sorted(path.name for path in root.iterdir()) == sorted(wanted)
    assert {path.name for path in (root / "bundles").iterdir()} == linked | {f"{digest}.sums" for digest in linked}
    hashes = {line[:64] for path in (root / "bundles").glob("*.sums") for line in path.read_text().splitlines()}
    assert {path.name for path in (root / "objects").iterdir()} == hashes
    assert not [name for base, _, names in os.walk(root) for name in names if name.endswith(".part")]
