"""The user's own CMake toolchain file, named by ``cmake_toolchain_file`` in a target profile."""

from __future__ import annotations

from pathlib import Path

from edgepack.cache import sha256_file
from edgepack.errors import ToolMissing
from edgepack.types import Compiler, Target


class CMakeFile:
    """Hands the file to CMake and believes it; the ELF files that it makes are checked as any other's."""

    name = "cmake_file"
    version = "1"

    def locate(self, target: Target, *, static: bool) -> Compiler | None:
        """The profile's toolchain file, when it names one."""
        if target.cmake_toolchain_file is None:
            return None
        path = Path(target.cmake_toolchain_file).expanduser()
        if not path.is_file():
            raise ToolMissing(
                f"The CMake toolchain file {path} of the target {target.name} doesn't exist.",
                "Correct `cmake_toolchain_file` in the profile, or remove it to let edgepack choose a compiler.",
            )
        return Compiler(
            toolchain=self.name,
            description=path.name,
            digest=sha256_file(path),
            cmake_args=(f"-DCMAKE_TOOLCHAIN_FILE={path.resolve()}",),
            static=static,
        )

    def advice(self, target: Target) -> str:
        """How to name one."""
        return f'Or set cmake_toolchain_file = "FILE" in a profile that extends {target.name}.'
