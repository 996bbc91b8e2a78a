"""Where a bundle can be measured: this machine, natively or under an emulator, or a device with the bundle on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from edgepack import elf, emulator
from edgepack.bench import HELD
from edgepack.bundle import Bundle, target_from
from edgepack.device import DeviceSession
from edgepack.errors import Busy, ToolMissing
from edgepack.measuring import Place
from edgepack.probe import probe, root
from edgepack.this_machine import MACHINES, X86_FEATURES
from edgepack.transports import connect
from edgepack.types import Device, Probe


@contextmanager
def place(device: Device, bundle: Bundle, variants: tuple[str, ...] = ()) -> Iterator[Place]:
    """Have `device` to oneself, with the bundle on it; what is active there stays.

    Raises `Busy`, `ToolMissing` (no emulator for a foreign bundle), `DeviceFailed` and `DeviceUnreachable`.
    """
    if device.transport == "local":
        with _here(device, bundle) as found:
            yield found
        return
    with DeviceSession.open(device) as session, session.holding(bundle, variants, HELD) as folder:
        yield Place(
            device=device,
            probe=session.probe,
            transport=session.transport,
            root=session.steps.root,
            folder=folder,
            how="emulated" if is_emulated(device, session.probe) else "native",
            keep=session.steps.lock,
        )


def is_emulated(device: Device, found: Probe) -> bool:
    """Whether a device is none: it has the tag ``emulated``, or another architecture's CPU shows through."""
    foreign = MACHINES.get(found.machine) != "x86_64" and any(map(X86_FEATURES.fullmatch, found.cpu_features))
    return "emulated" in device.tags or foreign


@contextmanager
def _here(device: Device, bundle: Bundle) -> Iterator[Place]:
    how, prefix = _runner(bundle)
    transport = connect(device)
    folder = Path(root(device))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / "bench.lock", timeout=0):
            yield Place(
                device=device,
                probe=probe(transport, device),
                transport=transport,
                root=str(folder),
                folder=str(bundle.path.resolve()),
                how=how,
                prefix=prefix,
            )
    except Timeout:
        raise Busy(
            f"Another program measures on {device.name}; both would be slower for it.",
            "Wait until it has ended.",
            id="EP902",
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
