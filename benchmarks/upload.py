"""How fast one large file gets to a device, side by side with the usual tools, all on loopback.

    python benchmarks/upload.py [--megabytes 200] [--runs 5] [--only ssh|adb]

ssh: `scp`, paramiko's own `sftp.put`, edgepack's push, to an sshd with a configuration of its own. adb: `adb push`
and edgepack's push, to the real adbd of a newer Debian, all in a network namespace (as root; see tests/adbd.py). Each
figure includes connecting and logging in, scp's and adb's also starting a process. The ways take turns, forwards and
backwards (A B B A), because other work on the machine comes and goes: medians, the median of the ratios within each
turn, and for adb the processor's seconds of all that take part: the program, adb's server, adbd and what it starts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from edgepack import transports
from edgepack.types import Device
from tests import adbd, sshd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--only", choices=["ssh", "adb"])
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        source, serial, process = options.inside.rsplit(",", 2)
        return inside(Path(source), serial, int(process), options.megabytes, options.runs)
    with tempfile.TemporaryDirectory(prefix="edgepack-upload-") as scratch:
        folder = Path(scratch)
        source = folder / "source"
        with source.open("wb") as file:
            for _ in range(options.megabytes):
                file.write(os.urandom(1_000_000))
        if options.only != "adb":
            over_ssh(folder, source, options.megabytes, options.runs)
        if options.only != "ssh":
            over_adb(folder, source, options.megabytes, options.runs)


def over_ssh(folder: Path, source: Path, megabytes: int, runs: int) -> None:
    remote = folder / "remote"
    (folder / "sshd").mkdir()
    with sshd.running(folder / "sshd") as server:
        scp = [
            "scp",
            "-q",
            "-P",
            str(server.port),
            "-i",
            str(server.key),
            "-o",
            f"UserKnownHostsFile={server.known_hosts}",
        ]
        scp += ["-o", "IdentitiesOnly=yes", str(source), f"{server.user}@127.0.0.1:{remote}"]

        def by_paramiko() -> None:
            import paramiko

            client = paramiko.SSHClient()
            client.load_host_keys(str(server.known_hosts))
            client.connect("127.0.0.1", server.port, server.user, key_filename=str(server.key), allow_agent=False)
            client.open_sftp().put(str(source), str(remote))
            client.close()

        def by_edgepack() -> None:
            transport = transports.connect(server.device())
            transport.push(source, str(remote))
            transport.close()

        ways = {"scp": lambda: run(scp), "paramiko sftp.put": by_paramiko, "edgepack": by_edgepack}
        compare(ways, "scp", source, remote, megabytes, runs)


def over_adb(folder: Path, source: Path, megabytes: int, runs: int) -> None:
    files = adbd.fetch()
    if isinstance(files, str):
        print(f"adb: left out, {files}")
        return
    (folder / "adbd").mkdir()
    with adbd.running(files, folder / "adbd") as (serial, _):
        process = (folder / "adbd" / "pid").read_text().strip()
        inside = ["nsenter", f"--net=/proc/{process}/ns/net", sys.executable, __file__]
        inside += ["--megabytes", str(megabytes), "--runs", str(runs), "--inside", f"{source},{serial},{process}"]
        run(inside, quiet=False)


def _listening(port: int) -> int:
    """The adb server that was started for a port."""
    for folder in Path("/proc").glob("[0-9]*"):
        words = (folder / "cmdline").read_bytes().split(b"\0")
        if words[0].endswith(b"adb") and any(word.endswith(str(port).encode()) for word in words):
            return int(folder.name)
    raise LookupError(f"no adb server for port {port}")


def seconds_of(processes: list[int]) -> float:
    """Processor seconds of this process, of those, and of their children that have ended."""
    own = os.times()
    ticks = 0
    for process in processes:
        fields = Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += sum(map(int, fields[11:15]))
    return sum(own[:4]) + ticks / os.sysconf("SC_CLK_TCK")


def inside(source: Path, serial: str, adbd_pid: int, megabytes: int, runs: int) -> None:
    """The adb part, where adbd is reached: edgepack starts an adb server there."""
    port, remote = 5137, source.with_name("remote")
    os.environ["HOME"] = str(source.parent)
    entry = Device(name="phone", target="", transport="adb", address=serial, options={"server_port": port})
    transports.connect(entry).run(["true"], 20)
    adb = ["adb", "-P", str(port), "-s", serial]
    try:
        ways = {
            "adb push": lambda: run([*adb, "push", str(source), str(remote)]),
            "edgepack": lambda: transports.connect(entry).push(source, str(remote)),
        }
        processes = [adbd_pid, _listening(port)]
        compare(ways, "adb push", source, remote, megabytes, runs, lambda: seconds_of(processes))
    finally:
        run([*adb, "kill-server"])


def run(argv: list[str], *, quiet: bool = True) -> None:
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL if quiet else None)


def compare(
    ways: dict[str, Callable[[], None]],
    base: str,
    source: Path,
    remote: Path,
    megabytes: int,
    runs: int,
    cpu: Callable[[], float] | None = None,
) -> None:
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    busy: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(runs):
        for name in list(ways) if turn % 2 == 0 else reversed(list(ways)):
            remote.unlink(missing_ok=True)
            before, started = cpu() if cpu else 0.0, time.monotonic()
            ways[name]()
            seconds[name].append(time.monotonic() - started)
            busy[name].append((cpu() if cpu else 0.0) - before)
            assert remote.stat().st_size == source.stat().st_size
    remote.unlink()
    load = os.getloadavg()[0]
    for name, each in seconds.items():
        middle = statistics.median(each)
        ratio = statistics.median(ours / own for ours, own in zip(seconds[base], each, strict=True))
        work = f"   CPU {statistics.median(busy[name]):.2f} s" if cpu else ""
        print(
            f"{name:<18} {megabytes / middle:7.0f} MB/s   {ratio:5.2f} x {base}   "
            f"({min(each):.2f} to {max(each):.2f} s, load {load:.1f}){work}"
        )


if __name__ == "__main__":
    main()
