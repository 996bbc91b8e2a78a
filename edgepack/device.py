"""A session with one device: install a bundle, prove it there, switch to it, go back; run its harness.

The device's side is a handful of constant shell scripts (templates/device/). Its folder holds ``objects/SHA256``,
bundles of hard links to them under ``bundles/DIGEST/``, and ``models/NAME/{current,previous}``, links that a rename
switches. What is active is a complete bundle that passed its self-test on that device, whatever fails and whenever.
"""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgepack import emulator, log, preflight, process
from edgepack.bundle import Bundle, golden_of
from edgepack.device_steps import Answer, Steps
from edgepack.errors import Busy, DeviceFailed, DeviceUnreachable, EdgepackError
from edgepack.interfaces import Transport
from edgepack.shipment import NAME, Shipment, archive, ship
from edgepack.types import Completed, Device, Probe, SelfTest

SMALL = 256 << 10  # files up to this many bytes travel together in one tar
BATCH = 4 << 20  # bytes of one tar
BLOCK = 4096  # what a small file takes on a disk
SLOWEST = 250_000  # bytes a second for which the lock's lease is long enough
LEASE = 120  # seconds that a lock outlives its last step
SELF_TEST_SECONDS = 300.0  # for each golden sample
TRIES = 3


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """How a deploy ended: ``installed``, ``unchanged`` or ``planned`` (a dry run). `sent` counts bytes of files."""

    device: str
    model: str
    digest: str
    status: str
    previous: str = ""
    files: int = 0
    sent: int = 0
    self_tests: tuple[tuple[str, SelfTest], ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Inventory:
    """Which of a shipment's objects a device lacks, and how many bytes of each arrived already."""

    missing: dict[str, int]
    free: int | None


class DeviceSession:
    """One device, by its transport. Use it as a context manager; one thread at a time."""

    def __init__(self, device: Device, transport: Transport, *, self_test_seconds: float = SELF_TEST_SECONDS) -> None:
        self.device = device
        self.transport = transport
        self.self_test_seconds = self_test_seconds
        self.steps = Steps(device, transport)
        self.digest = ""
        self._probe: Probe | None = None

    @classmethod
    def open(cls, device: Device, *, self_test_seconds: float = SELF_TEST_SECONDS) -> Self:
        """A session by the device's own transport; reaches nothing yet."""
        from edgepack.transports import connect

        return cls(device, connect(device), self_test_seconds=self_test_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the connection."""
        self.transport.close()

    def stop(self) -> None:
        """Let a deploy in another thread end soon: its link is cut, and it begins no other step."""
        self.steps.stopped = True
        with contextlib.suppress(Exception):
            self.transport.close()

    @property
    def probe(self) -> Probe:
        """What the device is; asked once."""
        if self._probe is None:  # not cached_property: before Python 3.12 one lock holds up the whole fleet
            from edgepack.probe import probe

            self._probe = probe(self.transport, self.device)
        return self._probe

    @property
    def tar(self) -> bool:
        """Whether files can travel together."""
        return "tar" in self.probe.tools

    def deploy(self, bundle: Bundle, variants: tuple[str, ...] = (), *, dry_run: bool = False) -> Deployed:
        """Install a checked bundle (or some of its variants), prove it on the device and switch to it.

        Raises `DeviceFailed` (refused, no space, self-test not passed: the old version stays), `Busy` and
        `DeviceUnreachable` (the next deploy goes on from there).
        """
        started = time.monotonic()
        shipment = ship(bundle, variants)
        preflight.check(shipment, self.probe, self.device.name)
        seen = self.steps.look(shipment)
        self.digest = shipment.digest

        def ended(status: str, **facts: Any) -> Deployed:
            facts = {"previous": seen.get("previous"), **facts}
            seconds = time.monotonic() - started
            return Deployed(
                device=self.device.name,
                model=shipment.name,
                digest=shipment.digest,
                status=status,
                seconds=seconds,
                **facts,
            )

        if seen.get("current") == shipment.digest == seen.get("whole"):
            if seen.get("locked") and not dry_run:
                self._tidy()
            return ended("unchanged")
        if dry_run:
            state = self._inventory(shipment, self.steps.begin(shipment, lease=0))
            return ended("planned", files=len(state.missing), sent=_bytes(shipment, state.missing))
        with self._kept_lock():
            files, sent = self._install(shipment)
            tests = self._prove(shipment)
            with log.step(f"{self.device.name}: switch {shipment.name} to {shipment.digest[:12]}"):
                switched = self.steps.activate(LEASE, shipment)
        return ended("installed", previous=switched.get("previous"), files=files, sent=sent, self_tests=tests)

    @contextlib.contextmanager
    def holding(self, bundle: Bundle, variants: tuple[str, ...], seconds: int) -> Iterator[str]:
        """Have a bundle on the device without switching to it, and the device to oneself; gives its folder there.

        The lock is for at most `seconds` (`steps.lock` renews it). A bundle that was not there is removed in the end.
        Raises like `deploy`.
        """
        for chosen in dict.fromkeys(((), variants)):  # as a whole it may be there, and then nothing is sent
            shipment = ship(bundle, chosen)
            preflight.check(ship(bundle, variants), self.probe, self.device.name)
            if there := self.steps.look(shipment).get("whole") == shipment.digest:
                break
        self.digest = shipment.digest
        leave = self.steps.release if there else functools.partial(self.steps.abandon, LEASE)
        try:
            if not there:
                self._install(shipment)
            self.steps.lock(seconds)
            yield f"{self.steps.root}/bundles/{self.digest}"
        except BaseException:
            with contextlib.suppress(Exception, KeyboardInterrupt):
                leave()
            raise
        leave()

    def rollback(self, model: str) -> tuple[str, str]:
        """Switch a model back to what was active before; returns the digests (before, now).

        Raises `DeviceFailed` when there is nothing to go back to, and `Busy`.
        """
        _check_name(model)
        answer = self.steps.rollback(LEASE, model)
        before, now = answer.pair("switched")
        if now:
            return before, now
        if damaged := answer.get("damaged"):
            raise DeviceFailed(
                f"{self.device.name}: the previous version of {model} {damaged[:12]} is damaged. Nothing was changed.",
                "Deploy its bundle again.",
                id="EP607",
            )
        what = f"keeps no earlier version of {model}" if answer.get("current") else f"has no model {model!r}"
        raise DeviceFailed(f"{self.device.name} {what}.", "Deploy the bundle that you want.", id="EP607")

    def active(self, model: str) -> dict[str, Any] | None:
        """The manifest of the bundle that a model runs from, whose `harness` it is then; None when there is none."""
        _check_name(model)
        text = self.steps.text("active", model)
        if not text.strip():
            return None
        try:
            manifest: dict[str, Any] = json.loads(text)
            self.digest = manifest["digest"]
        except (ValueError, KeyError, TypeError):
            raise DeviceFailed(f"{self.device.name}: the manifest of {model} is damaged.", "Deploy it again.") from None
        return manifest

    def harness(self, engine: str, args: Sequence[str], timeout: float, *, lease: int = 0) -> Completed:
        """Run ``bin/edgepack-ENGINE`` of the deployed (or `active`) bundle, in its folder: paths are the bundle's.

        `timeout` in seconds; a `lease` keeps this session's lock that long. Raises `process.TimedOut`.
        """
        assert self.digest, "deploy() or active() says which bundle"
        argv = [str(lease), self.digest, f"./bin/edgepack-{engine}", *args]
        return self.steps.call("harness", argv, timeout=timeout)

    @contextlib.contextmanager
    def run_folder(self, seconds: float) -> Iterator[RunFolder]:
        """A folder on the device for one run's arrays; holds the device's lock until it is removed again."""
        folder = RunFolder(self)
        try:
            self.steps.lock(LEASE + int(seconds))
            yield folder
        finally:
            with contextlib.suppress(Exception, KeyboardInterrupt):
                self.steps.release(folder.name)

    @contextlib.contextmanager
    def lock(self, seconds: int) -> Iterator[None]:
        """Hold the device for at most `seconds` (a lease, renewed by `harness`). Raises `Busy`."""
        with self._kept_lock():
            self.steps.lock(seconds)
            yield
            self.steps.release()

    def read(self, paths: Sequence[str]) -> dict[str, str]:
        """The text of small files (of /sys, /proc), in one round trip; those that can't be read are left out."""
        parts = self.steps.text("read", *paths).split("\x01")[1:]
        numbered = (part.partition("\n") for part in parts)
        return {paths[int(number)]: text.removesuffix("\n") for number, _, text in numbered}

    def send(self, content: bytes, path: str, offset: int = 0) -> None:
        """Write a file of edgepack's folder, from `offset` on."""
        with tempfile.TemporaryDirectory(prefix="edgepack-") as folder:
            local = Path(folder, "content")
            local.write_bytes(content)
            self.transport.push(local, f"{self.steps.root}/{path}", offset=offset)

    def write(self, path: str, text: str) -> bool:
        """Write a file of /sys; whether the device let us."""
        return self.steps.call("write", [path, text]).returncode == 0

    @contextlib.contextmanager
    def _kept_lock(self) -> Iterator[None]:
        """Give the lock back when the block fails, if the device can still be reached."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(Exception, KeyboardInterrupt):
                self.steps.release()
            raise

    def _tidy(self) -> None:
        """Clear up after a deploy that was killed between its switch and its end; not while somebody is at work."""
        with contextlib.suppress(Busy):
            self.steps.lock(LEASE)
            self.steps.abandon(LEASE)

    def _install(self, shipment: Shipment) -> tuple[int, int]:
        """Send what is missing and put the bundle together; returns the files and bytes that it lacked."""
        lacked: tuple[int, int] | None = None
        for left in reversed(range(TRIES)):
            lease = LEASE + sum(file.size for file in shipment.files) // SLOWEST
            state = self._inventory(shipment, self.steps.begin(shipment, lease))
            size = _bytes(shipment, state.missing)
            lacked = lacked or (len(state.missing), size)
            try:
                with log.step(f"{self.device.name}: send {len(state.missing)} files, {size / 1e6:.1f} MB"):
                    self._send(shipment, state, lease)
                if not (wrong := self.steps.commit(lease, shipment)):
                    return lacked
            except DeviceUnreachable as error:
                if not left or self.steps.stopped:
                    raise
                log.warn(f"{error.message} Trying again.")
                time.sleep(1)
            else:
                log.warn(f"{self.device.name}: {len(wrong)} files arrived with other bytes than were sent")
        raise DeviceFailed(
            f"{self.device.name} stored other bytes than were sent, {TRIES} times; its disk is likely faulty.",
            "The old version is still active. Choose another `root` for the device, on another disk.",
            id="EP605",
        )

    def _inventory(self, shipment: Shipment, answer: Answer) -> Inventory:
        there = set(answer.all("have"))
        parts = {sha: int(size) for sha, size in answer.pairs("part")}
        missing = {sha: parts.get(sha, 0) for sha in shipment.objects if sha not in there}
        free = answer.get("free")
        state = Inventory(missing=missing, free=int(free) * 1024 if free else None)
        needed = sum(max(0, shipment.objects[sha].size - at) + BLOCK for sha, at in missing.items())
        copies = 0 if answer.get("links") != "no" else sum(file.size + BLOCK for file in shipment.files)
        known = self.probe.free_bytes or None
        preflight.check_space(needed + copies, state.free if state.free is not None else known, self.device.name)
        return state

    def _send(self, shipment: Shipment, state: Inventory, lease: int) -> None:
        left = {sha: at for sha, at in state.missing.items() if at != shipment.objects[sha].size}
        small = [sha for sha in left if self.tar and shipment.objects[sha].size <= SMALL]
        for batch in _batches(shipment, small):
            self.steps.receive(lease, shipment.tar(batch))
        for sha, at in left.items():
            if sha in small:
                continue
            offset = at if at < shipment.objects[sha].size else 0
            self._push(shipment, sha, offset)

    def _push(self, shipment: Shipment, sha256: str, offset: int) -> None:
        path = f"objects/{sha256}.part"
        if sha256 in shipment.texts:
            self.send(shipment.texts[sha256], path, offset)
        else:
            self.transport.push(shipment.local(sha256), f"{self.steps.root}/{path}", offset=offset)

    def _prove(self, shipment: Shipment) -> tuple[tuple[str, SelfTest], ...]:
        """Run every variant on the golden samples, there. Raises `DeviceFailed` with what each one said."""
        results = []
        for item in shipment.manifest["variants"]:
            with log.step(f"{self.device.name}: self-test {item['name']}"):
                results.append((item["name"], self._self_test(shipment, item)))
        if bad := [f"{name}: {result.detail}" for name, result in results if not result.passed]:
            with contextlib.suppress(EdgepackError):
                self.steps.abandon(LEASE)
            raise DeviceFailed(
                f"{self.device.name} failed the self-test. {'; '.join(bad)}.",
                "The old version is still active and nothing of the new one was kept. "
                "`--variant` deploys only the variants that you name.",
                id="EP604",
            )
        return tuple(results)

    def _self_test(self, shipment: Shipment, item: Mapping[str, Any]) -> SelfTest:
        seconds = self.self_test_seconds * max(1, shipment.samples)
        args = ["self-test", "--variant", f"variants/{item['name']}", "--golden"]
        args.append(golden_of(item.get("input_set", "")))
        try:
            done = self.harness(item["engine"], args, seconds, lease=LEASE + int(seconds))
        except process.TimedOut as error:
            detail = f"the harness was killed after {error.seconds:.0f} s"
            return SelfTest(how="device", passed=False, detail=detail)
        runner = emulator.Emulator(how="device", description=f"on {self.device.name}", digest="", prefix=())
        return emulator.judge(done, runner, shipment.samples)


class RunFolder:
    """A folder on a device, named from a bundle's folder by `path`."""

    def __init__(self, session: DeviceSession) -> None:
        self.session = session
        self.name = uuid.uuid4().hex[:12]
        self.path = f"../../runs/{self.name}"

    def put(self, files: dict[str, bytes]) -> None:
        """Write files."""
        named = {f"runs/{self.name}/{name}": content for name, content in files.items()}
        if self.session.tar:
            self.session.steps.receive(LEASE, archive(named.items()))
            return
        self.session.steps.folder(LEASE, f"runs/{self.name}")
        for path, content in named.items():
            self.session.send(content, path)

    def get(self, name: str, local: Path) -> None:
        """Copy a file from there."""
        self.session.transport.pull(f"{self.session.steps.root}/runs/{self.name}/{name}", local)


def _check_name(model: str) -> None:
    if not NAME.fullmatch(model):
        raise DeviceFailed(f"{model!r} is no name of a model.", "It is the `name` of a bundle: see edgepack inspect.")


def _bytes(shipment: Shipment, missing: dict[str, int]) -> int:
    """Bytes that are still to be sent, of objects of which some arrived."""
    return sum(max(0, shipment.objects[sha].size - at) for sha, at in missing.items())


def _batches(shipment: Shipment, hashes: Sequence[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for sha in hashes:
        if batch and size + shipment.objects[sha].size > BATCH:
            yield batch
            batch, size = [], 0
        batch.append(sha)
        size += shipment.objects[sha].size
    if batch:
        yield batch
