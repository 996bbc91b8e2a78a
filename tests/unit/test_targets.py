"""Every shipped profile says the truth about what it offers, and `host` is this machine."""

import re
from pathlib import Path

import pytest

from edgepack import config, plugins, runtimes, this_machine
from edgepack.resources import data
from edgepack.types import Precision, Target

PROFILES = sorted(path.stem for path in data("targets").glob("*.toml"))
# Cores without ARMv8.2's instructions: LiteRT's aarch64 library dies there on its first atomic operation.
ARMV8_0 = {"cortex-a35", "cortex-a53", "cortex-a57", "cortex-a72", "cortex-a73"}
EMULATED = {
    "cortex-a7",
    "cortex-a53",
    "cortex-a72",
    "cortex-a76",
    "neoverse-n1",
    "max",
    "rv64",
}  # qemu-user 7 has these
HWCAPS = {
    "aarch64": {
        "fp", "asimd", "aes", "pmull", "sha1", "sha2", "crc32", "atomics", "fphp", "asimdhp", "asimdrdm", "lrcpc",
        "dcpop", "asimddp", "asimdfhm", "uscat", "ilrcpc", "flagm", "paca", "pacg", "i8mm", "bf16", "sve",
    },
    "armhf": {
        "half", "thumb", "fastmult", "vfp", "edsp", "neon", "vfpv3", "tls", "vfpv4", "idiva", "idivt", "vfpd32",
    },
    "riscv64": set("acdfimv"),
    "x86_64": {"sse4_2", "avx", "avx2", "fma", "f16c"},
}  # fmt: skip

CPUINFO_PI4 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm crc32 cpuid
CPU implementer\t: 0x41
"""
CPUINFO_X86 = """\
processor\t: 0
model name\t: Intel(R) Xeon(R) Processor
flags\t\t: fpu vme sse sse2 ssse3 sse4_2 avx f16c fma avx2 hypervisor flush_l1d
"""


@pytest.mark.parametrize("name", ["rk3588", "rk3566", "rk3399", "raspberrypi3", "raspberrypi4", "raspberrypi5",
                                  "jetson-orin", "imx8mp", "android-arm64", "linux-aarch64", "linux-armhf",
                                  "linux-riscv64", "linux-x86_64", "host"])  # fmt: skip
def test_the_promised_profile_is_there(name: str) -> None:
    assert name in PROFILES


@pytest.fixture(params=PROFILES)
def target(request: pytest.FixtureRequest) -> Target:
    return config.load_target(request.param)


def test_a_profile_is_complete(target: Target) -> None:
    assert target.description and target.memory_mb >= 256 and target.precisions == tuple(Precision)
    assert set(target.bounds) == set(Precision)


def test_every_engine_is_offered_or_absent_for_a_reason(target: Target) -> None:
    assert set(target.engines) | set(target.absent) == set(plugins.names("engines"))
    assert all(len(why.split()) > 4 for why in target.absent.values())


def test_an_engine_is_offered_exactly_where_its_pinned_library_runs(target: Target) -> None:
    for engine in plugins.names("engines"):
        problem = runtimes.problem(engine, target)
        assert (problem is None) == (engine in target.engines), f"{target.name}, {engine}: {problem}"


def test_litert_is_not_offered_on_cores_without_lse_atomics(target: Target) -> None:
    cores = {core for core, _ in target.clusters}
    if cores & ARMV8_0:
        assert "tflite" not in target.engines and "LSE atomics" in target.absent["tflite"]
        assert not {"atomics", "asimddp", "asimdhp"} & set(target.cpu_features)


def test_features_are_the_kernels_own_names(target: Target) -> None:
    if target.name != "host":
        assert set(target.cpu_features) <= HWCAPS[target.arch]
        assert target.emulator_cpu in EMULATED


def test_the_profile_of_the_issue_offers_all_three_engines() -> None:
    rk3588 = config.load_target("rk3588")

    assert set(rk3588.engines) == {"onnxruntime", "tflite", "ncnn"}
    assert rk3588.clusters == (("cortex-a55", 4), ("cortex-a76", 4))
    assert "Debian 12" in rk3588.description and rk3588.libc_version == "2.36"


def test_the_documentation_lists_every_profile() -> None:
    page = (Path(__file__).parents[2] / "docs" / "targets.md").read_text()

    assert {name for name in PROFILES if f"`{name}`" not in page} == set()
    assert {key for key in config.TARGET_KEYS if f"`{key}`" not in page} == set()


def test_every_profile_lists_without_error() -> None:
    assert [target.name for target in config.list_targets()] == PROFILES


# --- host -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> pytest.MonkeyPatch:
    """A machine that a test can describe: Raspberry Pi 4, glibc 2.36."""
    (tmp_path / "cpuinfo").write_text(CPUINFO_PI4)
    (tmp_path / "meminfo").write_text("MemTotal:        3885396 kB\n")
    library = tmp_path / "libstdc++.so.6"
    (tmp_path / "libstdc++.so.6.0.30").write_bytes(b"")
    library.symlink_to("libstdc++.so.6.0.30")
    monkeypatch.setattr(this_machine, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(this_machine, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(this_machine, "LIBRARY_FOLDERS", (str(tmp_path),))
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr("os.confstr", lambda name: "glibc 2.36")
    return monkeypatch


def test_host_is_the_machine_it_is_loaded_on(machine: pytest.MonkeyPatch) -> None:
    host = config.load_target("host")

    assert (host.name, host.arch, host.libc, host.libc_version, host.glibcxx) == (
        "host", "aarch64", "glibc", "2.36", "3.4.30",
    )  # fmt: skip
    assert host.cpu_features == ("asimd", "cpuid", "crc32", "evtstrm", "fp")
    assert host.memory_mb == 3885396 // 1024
    assert host.engines == ("onnxruntime", "ncnn") and "atomics" in host.absent["tflite"]


def test_host_offers_litert_where_the_cpu_has_atomics(machine: pytest.MonkeyPatch) -> None:
    this_machine.CPUINFO.write_text(CPUINFO_PI4.replace("crc32", "crc32 atomics"))

    assert set(config.load_target("host").engines) == {"onnxruntime", "tflite", "ncnn"}


def test_host_with_an_old_libc_lacks_the_engines_that_need_a_newer_one(machine: pytest.MonkeyPatch) -> None:
    machine.setattr("os.confstr", lambda name: "glibc 2.27")
    host = config.load_target("host")

    assert host.engines == ("ncnn",) and "2.28" in host.absent["onnxruntime"]


def test_host_on_musl_has_the_engine_that_is_compiled_from_source(machine: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> str:
        raise OSError(22, "Invalid argument")

    machine.setattr("os.confstr", refuse)
    host = config.load_target("host")

    assert (host.libc, host.engines) == ("musl", ("ncnn",)) and "glibc" in host.absent["onnxruntime"]


def test_host_on_x86_lists_the_features_that_choose_kernels(machine: pytest.MonkeyPatch) -> None:
    machine.setattr("platform.machine", lambda: "x86_64")
    this_machine.CPUINFO.write_text(CPUINFO_X86)
    host = config.load_target("host")

    assert host.cpu_features == ("avx", "avx2", "f16c", "fma", "sse", "sse2", "sse4_2", "ssse3")
    assert host.cpu == "Intel(R) Xeon(R) Processor"


def test_host_where_edgepack_has_no_profile_is_refused(machine: pytest.MonkeyPatch) -> None:
    machine.setattr("platform.machine", lambda: "s390x")

    with pytest.raises(config.UsageError, match="s390x"):
        config.load_target("host")


def test_a_profile_may_extend_host(machine: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('extends = "host"\nengines = ["ncnn"]\n')
    mine = config.load_target(tmp_path / "mine.toml")

    assert (mine.name, mine.arch, mine.engines) == ("mine", "aarch64", ("ncnn",))


def test_the_real_host_is_detected() -> None:
    host = config.load_target("host")

    assert host.arch == this_machine.arch() and re.fullmatch(r"\d+\.\d+", host.libc_version)
