"""What devices answer to the probe, recorded, and what edgepack makes of it."""

import re
from pathlib import Path

import pytest

from edgepack.config import load_target
from edgepack.errors import DeviceFailed, UsageError
from edgepack.probe import parse, profile, root
from edgepack.types import Device

DEBIAN = """\
Last login: Fri Nov 20 09:00:00 from nowhere
edgepack-probe 1
machine aarch64
kernel 6.1.0-28-arm64
clock 1795251832
os linux
libc glibc 2.36
loader ld-linux-aarch64.so.1 2.36
library libc.so.6
library libstdc++.so.6.0.30
features fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
part 0 0x41 0xd05
part 1 0x41 0xd05
part 2 0x41 0xd05
part 3 0x41 0xd05
part 4 0x41 0xd0b
part 5 0x41 0xd0b
part 6 0x41 0xd0b
part 7 0x41 0xd0b
cpu 0 1800000 ondemand
cpu 1 1800000 ondemand
cpu 2 1800000 ondemand
cpu 3 1800000 ondemand
cpu 4 2400000 ondemand
cpu 5 2400000 ondemand
cpu 6 2352000 ondemand
cpu 7 2352000 ondemand
memory_kb 16259072
temperature 46230 soc-thermal
temperature 47153 bigcore0-thermal
tools sha256sum tar sync flock taskset stat df mv ln dd timeout nice chmod
npu RKNPU
root /home/me/.edgepack
free_kb 52428800
writable yes
noexec no
end
"""
ALPINE = """\
edgepack-probe 1
machine aarch64
kernel 6.6.58-0-rpi
clock 1795251832
os linux
libc musl 1.2.5
features fp asimd evtstrm crc32 cpuid
part 0 0x41 0xd08
part 1 0x41 0xd08
part 2 0x41 0xd08
part 3 0x41 0xd08
cpu 0 1500000 schedutil
cpu 1 1500000 schedutil
cpu 2 1500000 schedutil
cpu 3 1500000 schedutil
memory_kb 3884108
temperature 52582 cpu-thermal
tools sha256sum tar sync flock taskset busybox stat df mv ln dd timeout nice chmod
root /root/.edgepack
free_kb 231992
writable yes
noexec no
end
"""
ANDROID = """\
edgepack-probe 1\r
machine aarch64
kernel 5.10.157-android13-4-00003-gdeadbeef-ab1234567
clock 1795251832
os android
libc bionic 34
features fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
part 0 0x41 0xd05
part 1 0x41 0xd05
part 2 0x41 0xd05
part 3 0x41 0xd05
part 4 0x41 0xd41
part 5 0x41 0xd41
part 6 0x41 0xd44
part 7 0x41 0xd44
cpu 0 1803000 sched_pixel
cpu 1 1803000 sched_pixel
cpu 2 1803000 sched_pixel
cpu 3 1803000 sched_pixel
cpu 4 2253000 sched_pixel
cpu 5 2253000 sched_pixel
cpu 6 2802000 sched_pixel
cpu 7 2802000 sched_pixel
memory_kb 7837584
temperature 31200 battery
temperature -274000 usb pwr therm
tools sha256sum tar sync flock taskset toybox stat df mv ln dd timeout nice chmod
root /data/local/tmp/edgepack
free_kb 91234567
writable yes
noexec no
end
"""
ODD = """\
edgepack-probe 1
machine armv7l
kernel 4.19.232
clock 37
os linux
loader ld-linux-armhf.so.3
library libc-2.31.so
library libstdc++.so.6.0.28
features half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm
part 0 0x41 0xc07
cpu 0 0 
memory_kb 245632
tools sync busybox df mv ln dd chmod
root /mnt/card/.edgepack
free_kb 0
writable no
end
"""


def without(text: str, *keys: str) -> str:
    return "".join(line for line in text.splitlines(True) if line.split(" ")[0] not in keys)


def test_a_debian_board_with_two_kinds_of_core() -> None:
    found = parse(DEBIAN, "board")

    assert (found.machine, found.os, found.libc, found.libc_version) == ("aarch64", "linux", "glibc", "2.36")
    assert found.glibcxx == "3.4.30"
    assert found.clusters == (("cortex-a55", 4), ("cortex-a76", 4))
    assert found.cpus[0] == (0, 1800000, "ondemand") and found.cpus[7] == (7, 2352000, "ondemand")
    assert "atomics" in found.cpu_features
    assert found.temperatures == (("soc-thermal", 46230), ("bigcore0-thermal", 47153))
    assert (found.memory_mb, found.free_bytes, found.npu) == (15878, 52428800 * 1024, "RKNPU")
    assert found.writable and not found.noexec and "flock" in found.tools


def test_an_alpine_board_with_musl_and_busybox() -> None:
    found = parse(ALPINE, "board")

    assert (found.libc, found.libc_version, found.glibcxx) == ("musl", "1.2.5", "")
    assert found.clusters == (("cortex-a72", 4),) and "busybox" in found.tools


def test_an_android_phone_whose_clusters_are_sorted_by_clock() -> None:
    found = parse(ANDROID, "phone")

    assert (found.os, found.libc, found.libc_version) == ("android", "bionic", "34")
    assert found.clusters == (("cortex-a55", 4), ("cortex-a78", 2), ("cortex-x1", 2))
    assert found.temperatures[1] == ("usb pwr therm", -274000)


def test_a_board_with_no_clock_governor_or_thermometer() -> None:
    found = parse(ODD, "board")

    assert (found.libc, found.libc_version, found.glibcxx) == ("glibc", "2.31", "3.4.28")
    assert found.cpus == ((0, 0, ""),) and found.clusters == (("cortex-a7", 1),)
    assert found.clock == 37 and found.temperatures == ()
    assert not found.writable and "sha256sum" not in found.tools


def test_a_32_bit_system_under_a_64_bit_kernel_is_a_32_bit_machine() -> None:
    text = DEBIAN.replace("ld-linux-aarch64.so.1", "ld-linux-armhf.so.3")

    assert parse(text, "board").machine == "armv8l"
    assert parse(without(DEBIAN, "loader"), "board").machine == "aarch64"


def test_the_loader_of_the_machine_itself_counts() -> None:
    text = DEBIAN.replace("library libc.so.6\n", "loader ld-linux-armhf.so.3 2.31\nlibrary libc.so.6\n")

    found = parse(text, "board")
    assert (found.machine, found.libc_version) == ("aarch64", "2.36")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no probe at all"),
        ("Welcome!\nPlease log in to the portal.\n", "no probe at all"),
        (DEBIAN.removesuffix("end\n"), "cut off"),
        (DEBIAN[: len(DEBIAN) // 2], "cut off"),
        (DEBIAN.replace("clock 1795251832", "clock yesterday"), "clock yesterday"),
        (DEBIAN.replace("npu RKNPU", "gpu mali"), "gpu mali"),
        (DEBIAN.replace("os linux", "os linux\nos android"), "os android"),
        (DEBIAN.replace("free_kb 52428800", "free_kb -"), "free_kb -"),
    ],
)
def test_an_answer_that_is_not_understood_is_refused(text: str, words: str) -> None:
    with pytest.raises(DeviceFailed, match=re.escape(words)) as failure:
        parse(text, "board")

    assert failure.value.id == "EP625" and "board" in failure.value.message


def test_every_cut_of_an_answer_is_noticed() -> None:
    for length in range(len(DEBIAN) - 1):
        with pytest.raises(DeviceFailed):
            parse(DEBIAN[:length], "board")


@pytest.mark.parametrize(
    ("text", "engines", "absent"),
    [
        (DEBIAN, ("onnxruntime", "tflite", "ncnn"), {}),
        (ALPINE, ("ncnn",), {"onnxruntime": "musl", "tflite": "musl"}),
        (ANDROID, ("ncnn",), {"onnxruntime": "android", "tflite": "android"}),
        (ODD, ("ncnn",), {"onnxruntime": "armhf", "tflite": "armhf"}),
        (without(DEBIAN.replace("2.36", "2.31"), "library"), ("ncnn",), {"onnxruntime": "GLIBCXX", "tflite": "glibc"}),
    ],
)
def test_a_probe_becomes_a_profile_that_the_loader_accepts(
    text: str, engines: tuple[str, ...], absent: dict[str, str], tmp_path: Path
) -> None:
    found = parse(text, "board")
    (tmp_path / "mine.toml").write_text(profile(found, 'a "quoted" board'))

    target = load_target(tmp_path / "mine.toml")

    assert set(target.engines) == set(engines)
    assert set(target.absent) == set(absent)
    assert all(words.lower() in target.absent[engine].lower() for engine, words in absent.items()), target.absent
    assert (target.libc, target.libc_version) == (found.libc, found.libc_version)
    assert target.cpu_features == found.cpu_features and target.clusters == found.clusters


def test_there_is_no_profile_for_an_unknown_machine() -> None:
    with pytest.raises(UsageError, match="mips"):
        profile(parse(DEBIAN.replace("machine aarch64", "machine mips"), "board"), "board")


def test_the_folder_on_the_device_is_the_entrys_or_the_transports_own() -> None:
    def at(transport: str, given: str = "") -> str:
        return root(Device(name="d", target="t", transport=transport, root=given))

    assert (at("ssh"), at("adb"), at("ssh", "/opt/ep")) == (".edgepack", "/data/local/tmp/edgepack", "/opt/ep")
    assert at("local").endswith("/device")
