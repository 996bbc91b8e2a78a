"""What a program needs is read from its bytes and held against the profile."""

from __future__ import annotations

import struct
from dataclasses import replace
from pathlib import Path

import pytest

from edgepack import config, elf
from edgepack.errors import IntegrityError
from edgepack.types import Target

AARCH64, X86_64 = 183, 62
PT_INTERP = 3
STRTAB, DYNAMIC, VERNEED, PROGBITS = 3, 6, 0x6FFFFFFE, 1
DT_NEEDED, DT_NULL = 1, 0


class Strings:
    """An ELF string table under construction."""

    def __init__(self) -> None:
        self.data = b"\0"

    def add(self, text: str) -> int:
        place = len(self.data)
        self.data += text.encode() + b"\0"
        return place


def write_elf(
    path: Path,
    *,
    machine: int = AARCH64,
    interpreter: str = "",
    needed: tuple[str, ...] = (),
    versions: dict[str, tuple[str, ...]] | None = None,
) -> Path:
    """A 64-bit little-endian ELF with just the sections that tell what it needs."""
    dynstr, names = Strings(), Strings()
    dynamic = b"".join(struct.pack("<QQ", DT_NEEDED, dynstr.add(name)) for name in needed)
    dynamic += struct.pack("<QQ", DT_NULL, 0)
    verneed = b""
    wanted = list((versions or {}).items())
    for index, (file, symbols) in enumerate(wanted):
        following = 0 if index + 1 == len(wanted) else 16 + 16 * len(symbols)
        verneed += struct.pack("<HHIII", 1, len(symbols), dynstr.add(file), 16, following)
        for number, symbol in enumerate(symbols):
            last = number + 1 == len(symbols)
            verneed += struct.pack("<IHHII", 0, 0, 2 + number, dynstr.add(symbol), 0 if last else 16)
    sections: list[tuple[str, int, bytes, int, int]] = [("", 0, b"", 0, 0)]
    if needed or versions:
        sections += [
            (".dynstr", STRTAB, dynstr.data, 0, 0),
            (".dynamic", DYNAMIC, dynamic, 1, 16),
            (".gnu.version_r", VERNEED, verneed, 1, 0),
        ]
    places = [names.add(name) if name else 0 for name, *_ in sections]
    names_index = len(sections)
    sections.append((".shstrtab", STRTAB, b"", 0, 0))
    places.append(names.add(".shstrtab"))
    interp = interpreter.encode() + b"\0"
    body = b"" if not interpreter else struct.pack("<IIQQQQQQ", PT_INTERP, 4, 120, 0, 0, len(interp), len(interp), 1)
    body += interp if interpreter else b""
    offset = 64 + len(body)
    headers = b""
    for index, (place, (_, kind, content, link, entry)) in enumerate(zip(places, sections, strict=True)):
        data = names.data if index == names_index else content
        info = len(wanted) if kind == VERNEED else 0
        headers += struct.pack("<IIQQQQIIQQ", place, kind, 0, 0, offset, len(data), link, info, 1, entry)
        body += data
        offset += len(data)
    program = (64, 1) if interpreter else (0, 0)
    ident = b"\x7fELF\x02\x01\x01" + b"\0" * 9
    numbers = (3, machine, 1, 0, program[0], offset, 0, 64, 56, program[1], 64, len(sections), names_index)
    path.write_bytes(ident + struct.pack("<HHIQQQIHHHHHH", *numbers) + body + headers)
    return path


@pytest.fixture
def target() -> Target:
    return replace(config.load_target("linux-aarch64"), libc_version="2.31", glibcxx="3.4.28")


def test_the_newest_version_is_the_largest_number_and_not_the_last_in_the_alphabet(tmp_path: Path) -> None:
    wanted = {
        "libc.so.6": ("GLIBC_2.9", "GLIBC_2.17", "GLIBC_2.4"),
        "libstdc++.so.6": ("GLIBCXX_3.4.9", "GLIBCXX_3.4.30"),
    }
    path = write_elf(tmp_path / "a", needed=("libc.so.6", "libstdc++.so.6"), versions=wanted)
    found = elf.needs(path)
    assert (found.glibc, found.glibcxx) == ("2.17", "3.4.30")
    assert found.libraries == ("libc.so.6", "libstdc++.so.6")


def test_versions_that_are_not_numbers_and_other_libraries_versions_are_left_out(tmp_path: Path) -> None:
    wanted = {"libc.so.6": ("GLIBC_PRIVATE", "GLIBC_ABI_DT_RELR", "GLIBC_2.17"), "libgcc_s.so.1": ("GCC_12.0.0",)}
    assert elf.needs(write_elf(tmp_path / "a", needed=("libc.so.6",), versions=wanted)).glibc == "2.17"


def test_a_program_with_a_loader_is_dynamic_and_one_without_anything_is_static(tmp_path: Path) -> None:
    loader = "/lib/ld-linux-aarch64.so.1"
    dynamic = elf.needs(write_elf(tmp_path / "a", interpreter=loader, needed=("libc.so.6",)))
    assert (dynamic.interpreter, dynamic.static) == (loader, False)
    static = elf.needs(write_elf(tmp_path / "b"))
    assert (static.arch, static.interpreter, static.libraries, static.static) == ("aarch64", "", (), True)


def test_a_file_that_is_no_program_or_is_cut_off_is_an_integrity_error(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("#!/bin/sh\n")
    whole = write_elf(tmp_path / "whole", needed=("libc.so.6",)).read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty").touch()
    for name in ("text", "cut", "empty", "absent"):
        with pytest.raises(IntegrityError, match=name):
            elf.needs(tmp_path / name)


def test_a_program_within_the_profile_has_no_violations(tmp_path: Path, target: Target) -> None:
    needed = ("libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-aarch64.so.1", "libgcc_s.so.1")
    wanted = {"libc.so.6": ("GLIBC_2.31",), "libstdc++.so.6": ("GLIBCXX_3.4.28",)}
    assert elf.violations(write_elf(tmp_path / "a", needed=needed, versions=wanted), target) == []


def test_every_need_beyond_the_profile_is_a_sentence_with_both_numbers(tmp_path: Path, target: Target) -> None:
    wanted = {"libc.so.6": ("GLIBC_2.34",), "libstdc++.so.6": ("GLIBCXX_3.4.30",)}
    path = write_elf(tmp_path / "prog", machine=X86_64, needed=("libgomp.so.1",), versions=wanted)
    assert elf.violations(path, target) == [
        "prog is for x86_64, the target linux-aarch64 is aarch64",
        "prog needs glibc 2.34, linux-aarch64 promises 2.31",
        "prog needs GLIBCXX_3.4.30, linux-aarch64 promises GLIBCXX_3.4.28",
        "prog needs libgomp.so.1, which linux-aarch64 doesn't promise",
    ]


def test_a_glibc_program_never_fits_a_target_with_another_libc_but_a_static_one_does(
    tmp_path: Path, target: Target
) -> None:
    android = replace(target, name="phone", os="android", libc="bionic", libc_version="24", glibcxx="")
    dynamic = write_elf(tmp_path / "d", needed=("libc.so.6",), versions={"libc.so.6": ("GLIBC_2.17",)})
    assert "d needs glibc, phone has bionic" in elf.violations(dynamic, android)
    assert elf.violations(write_elf(tmp_path / "s"), android) == []


def test_a_missing_version_is_older_than_any() -> None:
    assert elf.version("") < elf.version("2.4") < elf.version("2.17") < elf.version("2.17.1")
