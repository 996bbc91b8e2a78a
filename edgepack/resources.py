"""Finds targets/, templates/, cpp_runtime/ inside the wheel or in a checkout, and the user's folders."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).parent


def data(name: str) -> Path:
    """The folder or file `name` that ships with edgepack (``targets``, ``templates``, ``cpp_runtime``)."""
    for base in (_PACKAGE / "_data", _PACKAGE.parent):
        if (base / name).exists():
            return base / name
    raise FileNotFoundError(f"edgepack's own {name!r} is missing: the installation is damaged, install it again")


def cache_root() -> Path:
    """``EDGEPACK_CACHE``, or the user's cache folder."""
    chosen = os.environ.get("EDGEPACK_CACHE")
    if chosen:
        return Path(chosen).expanduser().absolute()
    from platformdirs import user_cache_path

    return user_cache_path("edgepack")


def config_root() -> Path:
    """The user's configuration folder: their devices.toml and the host keys that they trust."""
    from platformdirs import user_config_path

    return user_config_path("edgepack")
