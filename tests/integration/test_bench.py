"""`edgepack bench` with a real program, on this machine, under an emulator and over a real sshd."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgepack import bench, places, records
from edgepack.bundle import Bundle
from edgepack.device import DeviceSession
from edgepack.errors import Busy, DeviceFailed, DeviceUnreachable
from edgepack.inventory import find
from edgepack.measuring import Order, Place, measure
from edgepack.probe import probe
from edgepack.transports import connect
from tests import sshd
from tests.conftest import ROOT, need
from tests.devices import make_bundle
from tests.faults import proxy
from tests.sysfs import RK3588, governors, plant

# A harness whose inference is a loop; the first word of variant.txt says what it does.
HARNESS = r"""
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
static int64_t now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000LL + t.tv_nsec;
}
static const char* flag(int n, char** v, const char* name) {
  for (int i = 2; i + 1 < n; i += 2) if (!strcmp(v[i], name)) return v[i + 1];
  return "0";
}
static volatile uint64_t sink;
int main(int n, char** v) {
  char path[4096], word[64] = "";
  snprintf(path, sizeof path, "%s/variant.txt", flag(n, v, "--variant"));
  FILE* f = fopen(path, "r");
  if (!f || fscanf(f, "%63s", word) != 1) { fprintf(stderr, "edgepack: no %s\n", path); return 1; }
  if (!strcmp(word, "crash")) abort();
  if (!strcmp(word, "hang")) { fclose(fopen("hanging", "w")); sleep(600); }
  int good = strcmp(word, "wrong") != 0;
  printf("{\"type\":\"context\",\"schema\":2,\"engine\":\"null\",\"engine_version\":\"1\",\"cpu\":\"test\"}\n");
  printf("{\"type\":\"load\",\"variant\":0,\"precision\":\"fp32\",\"ns\":77,\"rss_bytes\":1}\n");
  printf("{\"type\":\"first\",\"variant\":0,\"ns\":99,\"rss_bytes\":1}\n");
  printf("{\"type\":\"golden\",\"variant\":0,\"index\":0,\"output\":0,\"status\":\"%s\",\"sqnr_db\":50}\n",
         good ? "ok" : "failed");
  if (good && !strcmp(v[1], "bench")) {
    double seconds = atof(flag(n, v, "--min-seconds"));
    int64_t start = now(), before = start, least = atol(flag(n, v, "--min-runs"));
    for (int64_t i = 0; i < least || before - start < seconds * 1e9; ++i) {
      for (int k = 0; k < 200000; ++k) sink = sink * 31 + k;
      int64_t after = now();
      printf("{\"type\":\"sample\",\"variant\":0,\"block\":0,\"ns\":%lld}\n", (long long)(after - before));
      before = now();
    }
  }
  printf("{\"type\":\"end\",\"status\":\"%s\",\"peak_rss_bytes\":4096}\n", good ? "ok" : "failed");
  return good ? 0 : 1;
}
"""


def compiled(folder: Path, compiler: str = "cc", *flags: str) -> Path:
    source, program = folder / "harness.c", folder / "edgepack-null"
    source.write_text(HARNESS)
    subprocess.run([compiler, "-O1", "-s", "-o", program, source, *flags], check=True)
    return program


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("harness"), need("cc", "apt install gcc libc6-dev"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sshd.Server]:
    with sshd.running(tmp_path_factory.mktemp("sshd")) as running:
        yield running


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))


def edgepack(*words: object) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "edgepack.cli", *map(str, words)]
    return subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("variants", [("null-fp32",), ("null-fp32", "null-fp16")])
def test_bench_on_this_machine(variants: tuple[str, ...], harness: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.edgepack", harness, variants=variants)

    done = edgepack("bench", bundle.path, "--min-time", "0.2", "--json", "--results", tmp_path / "results.jsonl")

    document = json.loads(done.stdout)
    assert done.returncode == (0 if all(m["valid"] for m in document["measurements"]) else 1), done.stderr
    assert [m["variant"] for m in document["measurements"]] == list(variants)
    for figure in document["measurements"]:
        assert figure["how"] == "native" and figure["bundle"] == bundle.manifest["digest"]
        assert figure["statistics"]["load_ns"] == 77 and figure["statistics"]["first_ns"] == 99
        assert len(figure["comparisons"]) == (len(variants) - 1 if figure["valid"] else 0)
    written = records.read(tmp_path / "results.jsonl")
    assert [json.loads(json.dumps(records.document(m))) for m in written] == document["measurements"]


def test_a_variant_that_crashes_is_exit_6_and_the_others_have_figures(harness: Path, tmp_path: Path) -> None:
    files = {"variants/null-int8/variant.txt": b"crash\n"}
    bundle = make_bundle(tmp_path / "b.edgepack", harness, variants=("null-fp32", "null-int8"), files=files)

    done = edgepack("bench", bundle.path, "--min-time", "0.2")

    assert done.returncode == 6
    assert "null-int8 x1: failed: the harness ended with signal 6 (SIGABRT)" in done.stdout
    assert "null-fp32" in done.stdout


def test_wrong_outputs_give_an_error_and_no_number(harness: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.edgepack", harness, does="wrong")

    done = edgepack("bench", bundle.path, "--min-time", "0.2", "--json")

    assert done.returncode == 6
    error = json.loads(done.stdout)["error"]
    assert error["id"] == "EP632" and "differ from the golden" in error["message"]


def test_a_foreign_bundle_is_measured_under_the_emulator_and_labelled(tmp_path: Path) -> None:
    compiler = need("aarch64-linux-gnu-gcc", "apt install gcc-aarch64-linux-gnu")
    need("qemu-aarch64", "apt install qemu-user")
    foreign = compiled(tmp_path, compiler, "-static")
    variants = ("null-fp32", "null-fp16")
    bundle = make_bundle(tmp_path / "b.edgepack", foreign, target="linux-aarch64", variants=variants)

    done = edgepack("bench", bundle.path, "--json")
    table = edgepack("bench", bundle.path)

    figures = json.loads(done.stdout)["measurements"]
    assert done.returncode == 0
    assert {(m["how"], m["rank"], len(m["comparisons"])) for m in figures} == {("emulated", None, 0)}
    assert "qemu-aarch64" in figures[0]["emulator"]
    assert "EMULATED by" in table.stdout and "no ranks" in table.stdout


@pytest.mark.parametrize(
    ("words", "id"),
    [
        (["--device", "nowhere"], "EP250"),
        (["--variant", "ncnn-int4"], "EP230"),
        (["--cores", "big"], "EP260"),
        (["--cores", "4000"], "EP260"),
        (["--threads", "0"], "EP200"),
        (["--min-time", "0"], "EP200"),
    ],
)
def test_wrong_words_are_refused(words: list[str], id: str, harness: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.edgepack", harness)

    done = edgepack("bench", bundle.path, *words, "--json")

    assert (done.returncode, json.loads(done.stdout)["error"]["id"]) == (2, id), done.stderr


def test_two_measurements_at_the_same_time_would_slow_each_other(harness: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.edgepack", harness)
    with places.place(find("local"), bundle), pytest.raises(Busy, match="measures on local"):
        with places.place(find("local"), bundle):
            pass


def test_ctrl_c_is_exit_130_and_nothing_keeps_running(harness: Path, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "b.edgepack", harness, does="hang")
    argv = [sys.executable, "-m", "edgepack.cli", "bench", str(bundle.path)]
    child = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert until(lambda: (bundle.path / "hanging").exists())

    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=60)

    assert child.returncode == 130, stderr
    running = str(bundle.path)
    assert until(lambda: not any(running in words(pid) for pid in Path("/proc").glob("[0-9]*")))
    assert until(lambda: [path.name for path in (tmp_path / "cache" / "device").iterdir()] == ["bench.lock"])


def words(process: Path) -> str:
    with contextlib.suppress(OSError):
        return (process / "cmdline").read_bytes().decode(errors="replace") + str((process / "cwd").readlink())
    return ""


def figure(device: Any, bundle: Bundle) -> Any:
    with places.place(device, bundle) as place:
        (found,) = bench.bench(place, bundle, min_time=0.3).measurements
    return found


def test_bench_over_ssh_leaves_what_is_active_and_nothing_of_its_own(
    server: sshd.Server, harness: Path, tmp_path: Path
) -> None:
    root = tmp_path / "device"
    device = replace(server.device(), root=str(root))
    old = make_bundle(tmp_path / "1.edgepack", harness, version="1")
    new = make_bundle(tmp_path / "2.edgepack", harness, version="2")
    with DeviceSession.open(device) as session:
        session.deploy(old)
    before = sorted(path.relative_to(root) for path in root.rglob("*"))

    deployed, other = figure(device, old), figure(device, new)

    assert deployed.bundle == old.manifest["digest"] and other.bundle == new.manifest["digest"]
    assert deployed.device["transport"] == "ssh" and deployed.statistics["samples"] > 0
    assert sorted(path.relative_to(root) for path in root.rglob("*")) == before


def test_a_bench_that_fails_over_ssh_leaves_nothing(server: sshd.Server, harness: Path, tmp_path: Path) -> None:
    root = tmp_path / "device"
    bundle = make_bundle(tmp_path / "b.edgepack", harness, does="crash")

    with pytest.raises(DeviceFailed, match="SIGABRT"):
        figure(replace(server.device(), root=str(root)), bundle)

    assert [path for path in root.rglob("*") if path.is_file() or path.is_symlink()] == []


def test_a_bench_of_a_bundle_that_is_there_takes_five_round_trips(
    server: sshd.Server, harness: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgepack.transports.ssh import Ssh

    device = replace(server.device(), root=str(tmp_path / "device"))
    bundle = make_bundle(tmp_path / "b.edgepack", harness)
    with DeviceSession.open(device) as session:
        session.deploy(bundle)
    calls: list[list[str]] = []
    run = Ssh.run

    def counted(self: Ssh, argv: list[str], timeout: float, **given: Any) -> Any:
        calls.append(argv)
        return run(self, argv, timeout, **given)

    monkeypatch.setattr(Ssh, "run", counted)
    found = figure(device, bundle)

    assert len(calls) - len(found.attempts) + 1 <= 5, "probe, look, lock, measure, release"


def test_a_link_that_is_lost_over_ssh_restores_the_clocks(server: sshd.Server, tmp_path: Path) -> None:
    tree = plant(RK3588, tmp_path / "tree")
    program = tmp_path / "bundle" / "slow"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho $$ >pid\nsleep 1\n")
    program.chmod(0o755)
    with proxy(("127.0.0.1", server.port)) as (port, faults):
        device = server.device(port=port)
        transport = connect(device)
        place = Place(
            device=device, probe=probe(transport, device), transport=transport, root=str(tmp_path / "root"),
            folder=str(program.parent), sysfs=str(tree),
        )  # fmt: skip

        def cut() -> None:
            until(lambda: (program.parent / "pid").exists())
            assert set(governors(tree).values()) == {"performance"}
            faults.cut_down = 0

        cutter = threading.Thread(target=cut)
        cutter.start()
        with pytest.raises(DeviceUnreachable):
            measure(place, Order(programs=(("./slow",),), order=(0,) * 100, limit=60, deadline=20))
        cutter.join()
        with contextlib.suppress(Exception):
            transport.close()

    assert until(lambda: set(governors(tree).values()) == {"ondemand"}, 40)
    assert until(lambda: not list((tmp_path / "root").iterdir()), 10)


def until(what: Any, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True
