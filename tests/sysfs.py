"""Trees of /sys and /proc as the kernels of some devices show them, reduced to what edgepack reads.

Written after the devices' device trees and kernel documentation, not copied from a device that we had at hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

CPUS = "/sys/devices/system/cpu"
THERMAL = "/sys/class/thermal"
GOVERNORS = "conservative ondemand userspace powersave performance schedutil"


def _policy(
    index: int, cpus: str, top: int, governor: str, governors: str = GOVERNORS, low: int = 408000
) -> dict[str, str]:
    folder = f"{CPUS}/cpufreq/policy{index}"
    return {
        f"{folder}/cpuinfo_max_freq": str(top),
        f"{folder}/cpuinfo_min_freq": str(low),
        f"{folder}/scaling_max_freq": str(top),
        f"{folder}/scaling_min_freq": str(low),
        f"{folder}/scaling_cur_freq": str(low),
        f"{folder}/scaling_governor": governor,
        f"{folder}/scaling_available_governors": governors,
        f"{folder}/related_cpus": cpus,
    }


def _zone(index: int, kind: str, temperature: int, passive: int = 0) -> dict[str, str]:
    folder = f"{THERMAL}/thermal_zone{index}"
    trips = {f"{folder}/trip_point_0_type": "passive", f"{folder}/trip_point_0_temp": str(passive)} if passive else {}
    return {f"{folder}/type": kind, f"{folder}/temp": str(temperature), **trips}


def _cooling(index: int, kind: str, most: int) -> dict[str, str]:
    folder = f"{THERMAL}/cooling_device{index}"
    return {f"{folder}/type": kind, f"{folder}/max_state": str(most), f"{folder}/cur_state": "0"}


_PROC = {
    "/proc/uptime": "1000.00 4000.00",
    "/proc/loadavg": "0.10 0.10 0.10 1/100 1000",
    "/proc/sys/kernel/random/boot_id": "6f2c1f0e-1111-2222-3333-444455556666",
}

RK3588: Mapping[str, str] = {
    **_PROC,
    **_policy(0, "0 1 2 3", 1800000, "ondemand"),
    **_policy(4, "4 5", 2400000, "ondemand"),
    **_policy(6, "6 7", 2400000, "ondemand"),
    **_zone(0, "soc-thermal", 42538, 85000),
    **_zone(1, "bigcore0-thermal", 42538, 85000),
    **_zone(2, "littlecore-thermal", 41615),
    **_cooling(0, "thermal-cpufreq-0", 6),
    **_cooling(1, "thermal-cpufreq-4", 8),
    **_cooling(2, "pwm-fan", 4),
}
RASPBERRY_PI_4: Mapping[str, str] = {
    **_PROC,
    **_policy(0, "0 1 2 3", 1500000, "ondemand", low=600000),
    **_zone(0, "cpu-thermal", 48686),
    "/sys/devices/platform/soc/soc:firmware/get_throttled": "0",
}
PHONE: Mapping[str, str] = {  # three clusters, and governors without performance
    **_PROC,
    **_policy(0, "0 1 2 3", 1803000, "sched_pixel", "sched_pixel powersave"),
    **_policy(4, "4 5", 2253000, "sched_pixel", "sched_pixel powersave"),
    **_policy(6, "6 7", 2802000, "sched_pixel", "sched_pixel powersave"),
    **_zone(0, "BIG", 38000, 90000),
    **_zone(1, "battery", 29000),
    **_cooling(0, "thermal-cpufreq-0", 10),
}
NO_CPUFREQ: Mapping[str, str] = _PROC

TREES = {"rk3588": RK3588, "raspberrypi4": RASPBERRY_PI_4, "phone": PHONE, "no cpufreq": NO_CPUFREQ}


def plant(tree: Mapping[str, str], root: Path) -> Path:
    """Write a tree below `root`."""
    for name, text in tree.items():
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def governors(root: Path) -> dict[str, str]:
    """The governor of each policy, now."""
    found = sorted(root.glob("sys/devices/system/cpu/cpufreq/policy*/scaling_governor"))
    return {path.parent.name: path.read_text().strip() for path in found}
