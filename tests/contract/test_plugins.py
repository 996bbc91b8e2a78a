"""Every installed plugin holds its interface; a new one needs no change here."""

import inspect
import tomllib
from typing import Any

import pytest

from edgepack import converter, interfaces, plugins
from edgepack.config import list_targets
from edgepack.types import Device, Precision

GROUPS = {
    "importers": interfaces.Importer,
    "passes": interfaces.GraphPass,
    "quantizers": interfaces.Quantizer,
    "engines": interfaces.Engine,
    "toolchains": interfaces.Toolchain,
    "transports": interfaces.Transport,
}
INSTALLED = [(group, name) for group in GROUPS for name in plugins.names(group)]


def made(group: str, name: str) -> Any:
    if group == "transports":  # one for each device; reaches it on first use only
        addresses = {"ssh": "me@board:2222", "adb": "0123456789ABCDEF"}
        device = Device(name="board", target="host", transport=name, address=addresses.get(name, ""))
        return plugins.find(group, name)(device)
    return plugins.load(group, name)


@pytest.mark.parametrize(("group", "name"), INSTALLED)
def test_a_plugin_has_what_its_protocol_asks_for(group: str, name: str) -> None:
    plugin, protocol = made(group, name), GROUPS[group]

    assert isinstance(plugin, protocol)
    assert plugin.name == name and plugin.version
    for method, wanted in inspect.getmembers(protocol, inspect.isfunction):
        if not method.startswith("_"):
            theirs = list(inspect.signature(getattr(plugin, method)).parameters)
            assert theirs == list(inspect.signature(wanted).parameters)[1:], method


@pytest.mark.parametrize(("group", "name"), [p for p in INSTALLED if p[0] in ("importers", "passes", "engines")])
def test_every_script_that_a_plugin_names_exists_with_pinned_dependencies(group: str, name: str) -> None:
    plugin = plugins.load(group, name)
    tools = plugin.tools
    scripts = {s for p in Precision for s in tools(p)} if callable(tools) else set(tools)

    assert scripts <= set(converter.scripts())
    for script in scripts:
        lines = (converter.FOLDER / f"{script}.py").read_text().split("# ///")[1].splitlines()[1:]
        dependencies = tomllib.loads("\n".join(line.removeprefix("#") for line in lines))["dependencies"]
        assert dependencies and all("==" in d or "sys_platform == 'never'" in d for d in dependencies), dependencies


def test_no_converter_imports_edgepack() -> None:
    for script in converter.scripts():
        text = (converter.FOLDER / f"{script}.py").read_text()
        assert "import edgepack" not in text and "from edgepack" not in text, script


@pytest.mark.parametrize("name", plugins.names("engines"))
def test_every_target_offers_an_engine_or_says_why_not(name: str) -> None:
    for target in list_targets():
        assert (name in target.engines) != bool(target.absent.get(name)), target.name
