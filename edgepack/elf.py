"""What a Linux program or shared library needs of the machine that runs it, read from the file itself."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgepack.errors import IntegrityError
from edgepack.types import Target

ARCHES = {"EM_AARCH64": "aarch64", "EM_X86_64": "x86_64", "EM_ARM": "armhf", "EM_RISCV": "riscv64"}

# What every system of that libc has, and what comes with its C++ runtime.
_GLIBC = re.compile(r"(lib(c|m|dl|pthread|rt|resolv|util)\.so\.\d+|ld-linux[\w-]*\.so\.\d+)$")
_MUSL = re.compile(r"(ld-musl-\w+\.so\.1|libc\.musl-\w+\.so\.1|libc\.so)$")
_BIONIC = re.compile(r"lib(c|m|dl|log|android)\.so$")
_PROMISED = {"glibc": _GLIBC, "musl": _MUSL, "bionic": _BIONIC}
_CXX = re.compile(r"lib(stdc\+\+|gcc_s)\.so\.\d+$")


@dataclass(frozen=True, kw_only=True)
class Needs:
    """The needs of one ELF file; empty strings where nothing is needed.

    `glibc` and `glibcxx` are the newest symbol versions that it asks for ("2.34", "3.4.30"), `libraries` the sonames,
    `interpreter` the dynamic loader, `static` whether nothing is loaded at run time.
    """

    arch: str
    glibc: str
    glibcxx: str
    libraries: tuple[str, ...]
    interpreter: str
    static: bool

    def document(self) -> dict[str, Any]:
        """For ``elf.json``."""
        return {**asdict(self), "libraries": list(self.libraries)}


def version(text: str) -> tuple[int, ...]:
    """``"2.34"`` as ``(2, 34)``, so that versions compare as numbers. Empty text is older than any version."""
    return tuple(int(part) for part in re.findall(r"\d+", text))


def needs(path: Path) -> Needs:
    """Read the needs of `path`. Raises `IntegrityError` when it isn't an ELF file."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with path.open("rb") as stream:
            return _read(ELFFile(stream))
    except (ELFError, OSError, ValueError, KeyError, AssertionError) as error:
        why = error or type(error).__name__
        raise IntegrityError(f"{path} can't be read as a program or library: {why}.") from error


def libc_version(path: Path) -> str:
    """The newest ``GLIBC_`` version that a C library provides, "" when it isn't glibc."""
    return provided_version(path, "GLIBC")


def provided_version(path: Path, prefix: str) -> str:
    """The newest ``PREFIX_`` symbol version that a library defines, "" when it defines none."""
    from elftools.elf.elffile import ELFFile
    from elftools.elf.gnuversions import GNUVerDefSection

    names: list[str] = []
    with path.open("rb") as stream:
        for section in ELFFile(stream).iter_sections():
            if isinstance(section, GNUVerDefSection):
                names += [aux.name for _, auxes in section.iter_versions() for aux in auxes]
    return _newest(names, prefix)


def page_size(path: Path) -> int:
    """The largest page size in bytes with which a kernel can load a program: the least alignment of its segments."""
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as stream:
        loaded = [s["p_align"] for s in ELFFile(stream).iter_segments() if s["p_type"] == "PT_LOAD"]
    return min(loaded, default=0)


def exports(path: Path, symbol: str) -> bool:
    """Whether a shared library has a function of that name for others to call."""
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as stream:
        table: Any = ELFFile(stream).get_section_by_name(".dynsym")
        found = [] if table is None else table.get_symbol_by_name(symbol) or []
        return any(each["st_shndx"] != "SHN_UNDEF" for each in found)


def violations(path: Path, target: Target) -> list[str]:
    """What of `path`'s needs the profile doesn't promise: a sentence each, empty when all is well."""
    found = needs(path)
    problems = []
    if found.arch != target.arch:
        problems.append(f"{path.name} is for {found.arch}, the target {target.name} is {target.arch}")
    if found.glibc and target.libc != "glibc":
        problems.append(f"{path.name} needs glibc, {target.name} has {target.libc}")
    elif version(found.glibc) > version(target.libc_version):
        problems.append(f"{path.name} needs glibc {found.glibc}, {target.name} promises {target.libc_version}")
    if version(found.glibcxx) > version(target.glibcxx):
        promised = f"GLIBCXX_{target.glibcxx}" if target.glibcxx else "no libstdc++"
        problems.append(f"{path.name} needs GLIBCXX_{found.glibcxx}, {target.name} promises {promised}")
    for library in found.libraries:
        if not _promised(library, target):
            problems.append(f"{path.name} needs {library}, which {target.name} doesn't promise")
    return problems


def _promised(library: str, target: Target) -> bool:
    if _CXX.match(library):
        return bool(target.glibcxx)
    known = _PROMISED.get(target.libc)
    return known is None or bool(known.match(library))


def _read(file: Any) -> Needs:
    from elftools.elf.dynamic import DynamicSection
    from elftools.elf.gnuversions import GNUVerNeedSection

    libraries: list[str] = []
    versions: list[str] = []
    for section in file.iter_sections():
        if isinstance(section, DynamicSection):
            tags: Any = section.iter_tags("DT_NEEDED")
            libraries += [tag.needed for tag in tags]
        elif isinstance(section, GNUVerNeedSection):
            versions += [one.name for _, wanted in section.iter_versions() for one in wanted]
    interpreter = next((s.get_interp_name() for s in file.iter_segments() if s["p_type"] == "PT_INTERP"), "")
    return Needs(
        arch=_arch(file),
        glibc=_newest(versions, "GLIBC"),
        glibcxx=_newest(versions, "GLIBCXX"),
        libraries=tuple(libraries),
        interpreter=interpreter,
        static=not interpreter and not libraries,
    )


def _arch(file: Any) -> str:
    machine = str(file["e_machine"])
    if machine == "EM_RISCV" and file.elfclass != 64:
        return "riscv32"
    return ARCHES.get(machine, machine.removeprefix("EM_").lower())


def _newest(names: list[str], prefix: str) -> str:
    found = [m.group(1) for name in names if (m := re.fullmatch(rf"{prefix}_(\d+(?:\.\d+)*)", name))]
    return max(found, key=version, default="")
