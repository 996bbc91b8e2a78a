"""`edgepack devices`: the inventory, what a device is, and which host keys are trusted."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgepack.types import Device, Probe

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")


@click.group(invoke_without_command=True)
@JSON
@click.pass_context
def devices(context: click.Context, as_json: bool) -> None:
    """List the devices, or probe, trust and add one."""
    if context.invoked_subcommand is None:
        _list(as_json)


@devices.command("list")
@JSON
def list_command(as_json: bool) -> None:
    """List the devices of every devices.toml."""
    _list(as_json)


@devices.command()
@click.argument("name")
@click.option("--write", "file", is_flag=False, flag_value="", metavar="[FILE.toml]",
              help="Write a target profile for devices like this one; default: NAME.toml.")  # fmt: skip
@JSON
def probe(name: str, file: str | None, as_json: bool) -> None:
    """Ask a device what it is: one round trip."""
    from edgepack import inventory, report
    from edgepack.probe import profile

    device = inventory.find(name)
    found = _probed(device)
    facts = {**asdict(found), "tools": sorted(found.tools)}
    text = _text(found)
    if file is not None:
        path = Path(file or f"{name}.toml")
        _write_profile(path, profile(found, name))
        facts["profile"] = str(path)
        text += f"\nwrote         {path}: use it with --target {path}, or as the target of {name} in devices.toml"
    _print(report.document("devices probe", device=name, **facts), as_json, text)


@devices.command()
@click.argument("name")
@click.option("--fingerprint", metavar="SHA256:...", help="Trust the key with this fingerprint; asks nothing.")
@click.option("--replace", "replacing", is_flag=True, help="Also when another key was trusted before.")
@JSON
def trust(name: str, fingerprint: str | None, replacing: bool, as_json: bool) -> None:
    """Show a device's host key, ask, and trust it from then on."""
    from edgepack import inventory, report

    said = _trust(inventory.find(name), fingerprint, replacing=replacing)
    text = f"{name}: {said['fingerprint']} is trusted ({said['file']})"
    _print(report.document("devices trust", device=name, **said), as_json, text)


@devices.command()
@click.argument("address", metavar="ssh://user@host[:port]|adb:SERIAL")
@click.option("--name", help="What to call it; default: from the address.")
@click.option("--target", "-t", metavar="NAME|FILE.toml", help="Its profile; default: the nearest, by a probe.")
@click.option("--root", default="", help="edgepack's folder on the device.")
@click.option("--tag", "tags", multiple=True, help="A tag (repeatable).")
@click.option("--option", "options", multiple=True, metavar="KEY=VALUE", help="The transport's own, such as key=FILE.")
@click.option("--fingerprint", metavar="SHA256:...", help="Trust the host key with this fingerprint; asks nothing.")
@JSON
def add(
    address: str,
    name: str | None,
    target: str | None,
    root: str,
    tags: tuple[str, ...],
    options: tuple[str, ...],
    fingerprint: str | None,
    as_json: bool,
) -> None:
    """Add a device to your devices.toml."""
    from edgepack import config, inventory, report
    from edgepack.errors import UsageError

    again = f"edgepack devices add {address} [the same options]"
    transport, where = _address(address)
    device = _device(transport, where, name, options)
    if device.name in inventory.devices():
        raise UsageError(f"There is a device {device.name!r} already.", "Choose another --name.", id="EP250")
    if fingerprint is not None:
        _trust(device, fingerprint, replacing=False, again=again)
    if target is None:
        if transport == "ssh" and fingerprint is None:
            _trust(device, None, replacing=False, again=again)
        target = _nearest(_probed(device))
    else:
        config.load_target(target)
        if target.endswith(".toml"):
            target = str(Path(target).absolute())
    device = replace(device, target=target, root=root, tags=tags)
    path = inventory.add(device)
    said = {**asdict(device), "file": str(path)}
    _print(report.document("devices add", **said), as_json, f"{device.name}: added to {path} with target {target}")


def _list(as_json: bool) -> None:
    from edgepack import inventory, report

    found = inventory.devices()
    rows = [("name", "target", "transport", "address", "tags")]
    rows += [(d.name, d.target, d.transport, d.address or "-", ", ".join(d.tags)) for d in found.values()]
    widths = [max(len(row[i]) for row in rows) for i in range(4)]
    lines = [
        "  ".join([*(word.ljust(width) for word, width in zip(row, widths, strict=False)), row[4]]) for row in rows
    ]
    listed = [{**asdict(device), "options": dict(device.options)} for device in found.values()]
    document = report.document("devices list", devices=listed, files=[str(path) for path in inventory.files()])
    _print(document, as_json, "\n".join(line.rstrip() for line in lines))


def _probed(device: Device) -> Probe:
    from edgepack import transports
    from edgepack.probe import probe as ask

    transport = transports.connect(device)
    try:
        return ask(transport, device)
    finally:
        transport.close()


def _text(found: Probe) -> str:
    clocks = sorted({(khz, governor) for _, khz, governor in found.cpus})
    rows = {
        "machine": f"{found.machine}, {found.os}, kernel {found.kernel}",
        "C library": f"{found.libc or 'unknown'} {found.libc_version}".strip()
        + (f", GLIBCXX_{found.glibcxx}" if found.glibcxx else ""),
        "cores": ", ".join(f"{count} x {core}" for core, count in found.clusters) or "unknown",
        "CPU features": " ".join(found.cpu_features) or "unknown",
        "clocks": ", ".join(f"{khz / 1000:.0f} MHz ({governor or '?'})" for khz, governor in clocks if khz)
        or "unknown",
        "temperature": ", ".join(f"{kind or '?'} {value / 1000:.1f} C" for kind, value in found.temperatures)
        or "unknown",
        "memory": f"{found.memory_mb} MB",
        "free": f"{found.free_bytes >> 20} MB"
        + ("" if found.writable else ", not writable")
        + (", programs may not run there (noexec)" if found.noexec else ""),
        "NPU": found.npu or "none known",
        "tools": " ".join(sorted(found.tools)),
    }
    return "\n".join(f"{key:<13} {value}" for key, value in rows.items())


def _write_profile(path: Path, text: str) -> None:
    from edgepack import config
    from edgepack.errors import UsageError

    if path.suffix != ".toml":
        raise UsageError(f"{path} is no .toml.", "Such as --write my-board.toml.", id="EP253")
    if path.exists():
        raise UsageError(f"{path} exists already.", "Name another file: --write FILE.toml.", id="EP253")
    try:
        path.write_text(text)
    except OSError as error:
        raise UsageError(f"{path} can't be written: {error.strerror}.", "", id="EP253") from error
    config.load_target(path)  # what we write, we can read


def _trust(device: Device, fingerprint: str | None, *, replacing: bool, again: str = "") -> dict[str, Any]:
    """Trust the host key that a device shows, when it is the one that is expected or the user says so."""
    from edgepack import trust as keys
    from edgepack.errors import DeviceUnreachable, UsageError

    if device.transport != "ssh":
        raise UsageError(
            f"{device.name} is reached by {device.transport}, which has no host keys.",
            "adb devices ask on their own screen." if device.transport == "adb" else "",
            id="EP254",
        )
    from edgepack.transports.ssh_link import fetch_key

    again = again or f"edgepack devices trust {device.name}"
    name, key, host = fetch_key(device)
    shown = keys.fingerprint(key.asbytes())
    entries = [entry for entry in keys.known(name, host.known_hosts) if not entry.revoked]
    said = {"host": name, "key_type": key.get_name(), "fingerprint": shown}
    if fingerprint is not None and fingerprint.strip() != shown:
        raise DeviceUnreachable(
            f"{device.name}: {name} shows the host key {shown}, not {fingerprint}.",
            "Nothing was stored. Somebody may be between you and the device, or the fingerprint is of another.",
            id="EP511",
        )
    if any(entry.key == key.asbytes() for entry in entries):
        return {**said, "file": str(next(e.file for e in entries if e.key == key.asbytes())), "new": False}
    if entries and not replacing:
        keys.check(device.name, name, key, host.known_hosts)  # says both fingerprints
    if fingerprint is None:
        before = "".join(f"\n  trusted so far: {keys.fingerprint(e.key)} ({e.key_type})" for e in entries)
        question = f"{device.name}: {name} shows the host key\n  {shown} ({key.get_name()}){before}\nTrust it?"
        if not sys.stdin.isatty():
            raise UsageError(
                f"{device.name}: {name} shows the host key {shown} ({key.get_name()}); nobody is here to confirm it.",
                f"Compare it with the device's own, then: {again} --fingerprint {shown}",
                id="EP255",
            )
        if not click.confirm(question, err=True):
            raise DeviceUnreachable(f"{device.name}: its host key was not confirmed.", "", id="EP510")
    return {**said, "file": str(keys.store(name, key, host.known_hosts)), "new": True}


def _address(address: str) -> tuple[str, str]:
    from edgepack.errors import UsageError

    for transport, prefix in (("ssh", "ssh://"), ("adb", "adb:")):
        if address.startswith(prefix) and len(address) > len(prefix):
            return transport, address.removeprefix(prefix)
    raise UsageError(
        f"{address!r} is no address of a device.", "Such as ssh://root@192.168.1.20 or adb:SERIAL.", id="EP251"
    )


def _device(transport: str, address: str, name: str | None, options: tuple[str, ...]) -> Device:
    """The entry, checked by the transport itself; its target is chosen later."""
    import re

    from edgepack import inventory, plugins
    from edgepack.errors import UsageError
    from edgepack.strict_toml import KINDS, near
    from edgepack.types import Device

    kind = plugins.find("transports", transport)
    given: dict[str, Any] = {}
    for option in options:
        key, equals, text = option.partition("=")
        if not equals or key not in kind.options:
            hint = f"Options of {transport}: {', '.join(kind.options)}."
            raise UsageError(f"--option {option!r} is not known.{near(key, kind.options)}", hint, id="EP251")
        value: Any = text
        if kind.options[key] != "a string":
            try:
                value = json.loads(text)
            except ValueError:
                value = None
        if not KINDS[kind.options[key]](value):
            raise UsageError(f"--option {option!r}: {key} should be {kind.options[key]}.", "", id="EP251")
        given[key] = str(Path(value).expanduser().absolute()) if key in ("key", "known_hosts", "ssh_config") else value
    if name is None:
        host = re.sub(r"^.*@|:\d+$", "", address) if transport == "ssh" else address
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", host).strip("-._")[:64]
    if not inventory.NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no good name for a device.", "Letters, digits, dot, dash, underscore.", id="EP251"
        )
    device = Device(name=name, target="", transport=transport, address=address, options=given)
    kind(device)
    return device


def _nearest(found: Probe) -> str:
    """The shipped profile that every device of this architecture and system fits."""
    from edgepack.errors import UsageError
    from edgepack.this_machine import MACHINES

    arch = MACHINES.get(found.machine)
    if found.os == "android" and arch == "aarch64":
        return "android-arm64"
    if arch is None or found.os != "linux":
        raise UsageError(f"There is no profile for {found.os} on {found.machine}.", "Name one by --target.", id="EP202")
    return f"linux-{arch}"


def _print(document: dict[str, Any], as_json: bool, text: str) -> None:
    from edgepack import cli

    cli._print(document, as_json, text)
