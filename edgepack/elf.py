"""What an ELF file needs of the system it runs on, read from the file itself."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgepack.runtimes import version
from edgepack.types import Target

MACHINES = {"EM_AARCH64": "aarch64", "EM_X86_64": "x86_64", "EM_ARM": "armhf", "EM_RISCV": "riscv64"}


@dataclass(frozen=True, kw_only=True)
class Needs:
    """Architecture, newest symbol versions and shared libraries; empty strings where nothing is needed."""

    arch: str
    glibc: str
    glibcxx: str
    libraries: tuple[str, ...]
    interpreter: str
    static: bool

    def document(self) -> dict[str, Any]:
        """For ``elf.json``."""
        return asdict(self)


def needs(path: Path) -> Needs:
    """Read an ELF file. Raises `ValueError` when it is none."""
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile

    try:
        with path.open("rb") as stream:
            elf = ELFFile(stream)
            dynamic = elf.get_section_by_name(".dynamic")
            interpreter = next((s.get_interp_name() for s in elf.iter_segments() if s["p_type"] == "PT_INTERP"), "")
            libraries = (
                [] if dynamic is None else [t.needed for t in dynamic.iter_tags() if t.entry.d_tag == "DT_NEEDED"]
            )
            versions = elf.get_section_by_name(".gnu.version_r")
            wanted = [] if versions is None else [aux.name for _, auxes in versions.iter_versions() for aux in auxes]
            return Needs(
                arch=MACHINES.get(elf["e_machine"], str(elf["e_machine"])),
                glibc=_newest(wanted, "GLIBC"),
                glibcxx=_newest(wanted, "GLIBCXX"),
                libraries=tuple(libraries),
                interpreter=interpreter,
                static=not interpreter and not libraries,
            )
    except (ELFError, OSError) as error:
        raise ValueError(f"{path} is not an ELF file: {error}") from error


def violations(path: Path, target: Target) -> list[str]:
    """Sentences about what the file needs and the target's profile doesn't promise."""
    found = needs(path)
    problems = []
    if found.arch != target.arch:
        problems.append(f"{path.name} is for {found.arch}, not {target.arch}")
    if found.static:
        return problems
    if target.libc == "glibc" and found.glibc and version(found.glibc) > version(target.libc_version):
        problems.append(f"{path.name} needs glibc {found.glibc}, {target.name} has {target.libc_version}")
    if target.libc == "glibc" and found.glibcxx and version(found.glibcxx) > version(target.glibcxx):
        problems.append(f"{path.name} needs GLIBCXX_{found.glibcxx}, {target.name} has {target.glibcxx}")
    return problems


def _newest(versions: list[str], prefix: str) -> str:
    found = [m.group(1) for v in versions if (m := re.fullmatch(rf"{prefix}_(\d+(?:\.\d+)*)", v))]
    return max(found, key=version, default="")
