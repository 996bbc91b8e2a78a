"""Android's NDK, when ANDROID_NDK_HOME names one."""

from __future__ import annotations

import os
from pathlib import Path

from edgepack.cache import sha256_text
from edgepack.errors import ToolMissing
from edgepack.types import Compiler, Target

ABIS = {"aarch64": "arm64-v8a", "armhf": "armeabi-v7a", "x86_64": "x86_64"}
PLATFORM = "android-24"


class AndroidNdk:
    """The NDK's own CMake toolchain file."""

    name = "android_ndk"
    version = "1"

    def locate(self, target: Target, *, static: bool) -> Compiler | None:
        """The NDK for Android targets. Raises `ToolMissing` when ANDROID_NDK_HOME is set to something else."""
        home = os.environ.get("ANDROID_NDK_HOME")
        if target.os != "android" or not home or target.arch not in ABIS:
            return None
        file = Path(home) / "build" / "cmake" / "android.toolchain.cmake"
        properties = Path(home) / "source.properties"
        if not file.is_file():
            raise ToolMissing(
                f"ANDROID_NDK_HOME is {home}, but there is no build/cmake/android.toolchain.cmake in it.",
                "Set it to an unpacked Android NDK, or unset it to let edgepack choose another compiler.",
            )
        release = properties.read_text() if properties.is_file() else ""
        args = (
            f"-DCMAKE_TOOLCHAIN_FILE={file}",
            f"-DANDROID_ABI={ABIS[target.arch]}",
            f"-DANDROID_PLATFORM={PLATFORM}",
            "-DANDROID_STL=c++_static",
        )
        return Compiler(
            toolchain=self.name,
            description="Android NDK",
            digest=sha256_text("\n".join([self.version, release, *args[1:]])),
            cmake_args=args,
            static=static,
        )

    def advice(self, target: Target) -> str:
        """Where the NDK is looked for."""
        return "Set ANDROID_NDK_HOME to an Android NDK." if target.os == "android" else ""
