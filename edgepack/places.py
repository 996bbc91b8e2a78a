"""Where a bundle can be measured: this machine, natively or under an emulator."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from edgepack import elf, emulator
from edgepack.bundle import Bundle, target_from
from edgepack.errors import Busy, ToolMissing, UsageError
from edgepack.measuring import Place
from edgepack.probe import probe, root
from edgepack.transports import connect
from edgepack.types import Device


@contextmanager
def place(device: Device, bundle: Bundle) -> Iterator[Place]:
    """Have `device` to oneself, with the bundle on it. Raises `Busy`, `ToolMissing`, `DeviceUnreachable`."""
    if device.transport != "local":
        raise UsageError(
            f"{device.name}: bundles can be measured on devices with the transport `local` only in this version.",
            "Copy the bundle to the device and call bin/edgepack-ENGINE bench there.",
            id="EP240",
        )
    transport = connect(device)
    folder = root(device)
    Path(folder).mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(Path(folder, "bench.lock"), timeout=0):
            how, prefix = _runner(bundle)
            yield Place(
                device=device,
                probe=probe(transport, device),
                transport=transport,
                root=folder,
                folder=str(bundle.path.resolve()),
                how=how,
                prefix=prefix,
            )
    except Timeout:
        raise Busy(
            f"Another program measures on {device.name}; both would be slower for it.", "Wait until it has ended."
        ) from None
    finally:
        transport.close()


def _runner(bundle: Bundle) -> tuple[str, tuple[str, ...]]:
    target = target_from(bundle.manifest["target"])
    programs = sorted((bundle.path / "bin").glob("edgepack-*"))
    static = all(elf.needs(program).static for program in programs)
    found = emulator.find(target, static=static)
    if found is None:
        raise ToolMissing(f"This machine can't run {target.arch} programs: {emulator.why_not(target)}.", "")
    return found.how, found.prefix
