"""The ways to a device. A transport is one class behind an entry point, called with the `Device`."""

from __future__ import annotations

from edgepack import plugins
from edgepack.interfaces import Transport
from edgepack.types import Device


def connect(device: Device) -> Transport:
    """The transport of `device`. Its link is opened on first use, so this reaches nothing.

    Raises `UsageError` (no such transport, an address or option that it doesn't understand).
    """
    made: Transport = plugins.find("transports", device.transport)(device)
    return made
