"""What `edgepack bench` makes of devices: steady, hot, busy, vanishing. The device is simulated, its clock scripted."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgepack import bench as benching
from edgepack import records
from edgepack.bench import Result, mask_of
from edgepack.bundle import Bundle
from edgepack.errors import DeviceFailed, DeviceUnreachable, UsageError
from edgepack.places import is_emulated
from edgepack.types import Device, Measurement, set_of
from tests.simulated_device import SimulatedDevice, place_of, probe_of
from tests.sysfs import NO_CPUFREQ, PHONE, RASPBERRY_PI_4, RK3588, TREES

FAST, SLOW = {"ncnn-int8": 0.010}, {"ncnn-int8": 0.010, "ncnn-fp32": 0.0105}


def bundle_of(*variants: str) -> Bundle:
    parts = [(v, *v.partition("@")[0].rsplit("-", 1), set_of(v)) for v in variants]
    items = [{"name": v, "engine": e, "precision": p, "input_set": s} for v, e, p, s in parts]
    files = [{"path": f"variants/{v}/model.bin", "sha256": "1" * 64, "size": 1, "role": "model"} for v in variants]
    files.append({"path": "bin/edgepack-ncnn", "sha256": "2" * 64, "size": 1, "role": "harness"})
    manifest: dict[str, Any] = {
        "name": "model", "digest": "3" * 64, "target": {"name": "rk3588"}, "variants": items, "files": files
    }  # fmt: skip
    return Bundle(path=Path("model.edgepack"), manifest=manifest)


def measure(device: SimulatedDevice, how: str = "native", **options: Any) -> Result:
    return benching.bench(place_of(device, how), bundle_of(*device.latency), **{"min_time": 1.0, **options})


def one(device: SimulatedDevice, **options: Any) -> Measurement:
    (figure,) = measure(device, **options).measurements
    return figure


def test_one_variant_of_a_steady_device() -> None:
    device = SimulatedDevice(FAST)

    figure = one(device)

    assert figure.valid and not figure.reason and figure.rank is None
    assert figure.statistics["median_ns"] == pytest.approx(10e6, rel=0.02)
    low, high = figure.statistics["interval_ns"]
    assert low <= figure.statistics["median_ns"] <= high
    assert figure.statistics["load_ns"] == 5_000_000 and figure.statistics["first_ns"] == 30_000_000
    assert figure.statistics["peak_rss_bytes"] == 12_000_000
    assert figure.statistics["seconds"] >= 1.0
    assert len(figure.blocks) == 8
    assert len(device.calls) == 1, "one round trip"
    assert device.governors() == {"ondemand"}
    assert {clock["governor"] for clock in figure.conditions["clocks"]} == {"performance"}
    assert figure.conditions["restored"] is True
    assert (figure.harness_sha256, figure.bundle, figure.engine_version) == ("2" * 64, "3" * 64, "9")


def test_every_sample_is_kept_and_warm_up_is_marked() -> None:
    figure = one(SimulatedDevice(FAST, warmup_runs=4, noise=0.001))

    for block in figure.blocks:
        assert block.warmup == 4
        assert block.samples_ns[0] > 14e6
    assert figure.statistics["slowest_ns"] < 11e6


def test_percentiles_come_with_the_samples_that_justify_them() -> None:
    few = one(SimulatedDevice({"ncnn-int8": 0.2})).statistics
    many = one(SimulatedDevice(FAST), min_time=5.0).statistics

    assert few["p90_ns"] is not None and few["p99_ns"] is None
    assert many["p99_ns"] >= many["p90_ns"] >= many["median_ns"]


def test_a_variant_that_is_5_percent_slower_ranks_second() -> None:
    figures = {m.variant: m for m in measure(SimulatedDevice(SLOW)).measurements}

    assert (figures["ncnn-int8"].rank, figures["ncnn-fp32"].rank) == (1, 2)
    (told,) = figures["ncnn-fp32"].comparisons
    assert told["with"] == "ncnn-int8 x1" and told["verdict"] == "slower"
    assert told["low"] <= told["ratio"] <= told["high"] and told["ratio"] == pytest.approx(1.05, abs=0.01)


def test_variants_are_ranked_among_those_of_their_own_input_set() -> None:
    device = SimulatedDevice({**SLOW, "ncnn-int8@wide": 0.02, "ncnn-fp32@wide": 0.022})
    result = measure(device)
    figures = {m.variant: m for m in result.measurements}

    assert {name: m.rank for name, m in figures.items()} == {
        "ncnn-int8": 1, "ncnn-fp32": 2, "ncnn-int8@wide": 1, "ncnn-fp32@wide": 2
    }  # fmt: skip
    assert [told["with"] for told in figures["ncnn-fp32@wide"].comparisons] == ["ncnn-int8@wide x1"]
    table = records.table(result)
    assert re.search(r"ncnn-fp32@wide x1: 1\.\d+ times as long as ncnn-int8@wide x1", table)
    assert "Ranks are among the variants of one input set" in table
    (call,) = device.calls
    assert "golden@wide" in " ".join(call) and "golden " in " ".join(call)


def test_equal_variants_are_a_tie() -> None:
    result = measure(SimulatedDevice({"ncnn-int8": 0.01, "ncnn-fp32": 0.01}))

    assert [m.rank for m in result.measurements] == [1, 1]
    assert "tie with" in records.table(result)
    assert "1 tie" in records.table(result)


def test_heat_that_nobody_tells_of_favours_no_variant() -> None:
    """No clocks, no temperatures, 8 % slower when warm: the variant that is measured first must not win."""
    for seed in range(10):
        device = SimulatedDevice(
            {"ncnn-int8": 0.01, "ncnn-fp32": 0.01}, tree=dict(NO_CPUFREQ), slow_when_warm=0.08, seed=seed
        )
        assert [m.rank for m in measure(device).measurements] == [1, 1]


def test_a_device_that_throttles_is_cooled_and_measured_again_and_then_not_believed() -> None:
    device = SimulatedDevice(FAST, hot=110.0, warm_seconds=0.2)

    figure = one(device)

    assert not figure.valid and figure.rank is None
    assert "cooling device thermal-cpufreq-0" in figure.reason
    assert "soc-thermal reached" in figure.reason
    assert len(figure.attempts) == 3, "twice again, not more"
    assert [int(call[11]) > 0 for call in device.calls] == [False, True, True], "it cools down before it tries again"
    assert figure.conditions["cooled_seconds"] is not None
    assert device.governors() == {"ondemand"}


def test_a_device_that_was_only_hot_at_first_is_believed_in_the_end() -> None:
    device = SimulatedDevice(FAST, hot=84.0, warm_seconds=4.0)
    device.temperature = 86.0

    figure = one(device)

    assert figure.valid
    assert figure.attempts[0] and not figure.attempts[-1]


def test_a_slowdown_that_sysfs_doesnt_tell_is_found_by_the_canary() -> None:
    device = SimulatedDevice(FAST, tree=dict(NO_CPUFREQ))
    device.disturb = lambda now: 1.3 if (device.blocks - 1) % 8 >= 4 else 1.0

    figure = one(device)

    assert not figure.valid
    assert "as long at the end as at the beginning" in figure.reason


def test_a_slow_start_is_warm_up_and_not_a_doubt() -> None:
    figure = one(SimulatedDevice(FAST, disturb=lambda now: 1.5 if now < 0.35 else 1.0))

    assert figure.valid
    assert figure.warmup_rounds >= 1


def test_spikes_make_no_figure_invalid_and_stay_in_its_tail() -> None:
    device = SimulatedDevice(FAST, disturb=lambda now: 6.0 if int(now * 1000) % 20 == 0 else 1.0)

    figure = one(device, min_time=5.0)

    assert figure.valid
    assert figure.statistics["median_ns"] < 10.5e6
    assert figure.statistics["slowest_ns"] > 50e6


def test_a_governor_that_may_not_be_set_is_a_note() -> None:
    figure = one(SimulatedDevice(FAST, permits_governor=False))

    assert figure.valid
    assert any("clocks were not set (governor ondemand)" in note for note in figure.notes)
    assert figure.conditions["restored"] is None


@pytest.mark.parametrize("name", TREES)
def test_every_kind_of_device_gives_a_figure_with_its_conditions(name: str) -> None:
    figure = one(SimulatedDevice(FAST, tree=dict(TREES[name])))

    assert figure.valid
    assert len(figure.conditions["clocks"]) == sum(key.endswith("/scaling_governor") for key in TREES[name])
    assert len(figure.conditions["temperatures"]) == sum(key.endswith("/temp") for key in TREES[name])


def test_a_lost_link_is_an_error_and_the_device_restores_itself() -> None:
    device = SimulatedDevice(SLOW, cut_after=5)

    with pytest.raises(DeviceUnreachable):
        measure(device)
    assert device.governors() == {"ondemand"}


def test_ctrl_c_ends_it_and_the_device_restores_itself() -> None:
    device = SimulatedDevice(SLOW, interrupt_after=5)

    with pytest.raises(KeyboardInterrupt):
        measure(device)
    assert device.governors() == {"ondemand"}


def test_a_variant_that_dies_doesnt_hide_the_others() -> None:
    device = SimulatedDevice({**SLOW, "ncnn-fp16": 0.02}, fails={"ncnn-fp32": "out of memory"})

    result = measure(device)

    assert [m.variant for m in result.measurements] == ["ncnn-int8", "ncnn-fp16"]
    assert [m.rank for m in result.measurements] == [1, 2]
    ((case, why),) = result.failures
    assert (case.variant, "out of memory" in why) == ("ncnn-fp32", True)
    assert "ncnn-fp32 x1: failed" in records.table(result)


def test_wrong_outputs_are_an_error_and_no_number() -> None:
    with pytest.raises(DeviceFailed, match="differ from the golden"):
        measure(SimulatedDevice(FAST, wrong=("ncnn-int8",)))


def test_an_emulated_figure_is_labelled_and_never_ranked_or_compared() -> None:
    device = SimulatedDevice(SLOW)

    result = measure(device, how="emulated")

    assert all(m.how == "emulated" and m.rank is None and not m.comparisons for m in result.measurements)
    assert "EMULATED" in records.table(result)
    assert all(len(m.blocks) == 1 for m in result.measurements)
    assert device.calls[0][7] == "no", "the clocks of this machine are left alone"
    assert device.programs[0][0] == "qemu-aarch64"


def test_a_board_that_is_emulated_itself_is_found() -> None:
    board = Device(name="board", target="rk3588", transport="ssh")
    real = probe_of(RK3588)

    assert not is_emulated(board, real)
    assert is_emulated(replace(board, tags=("lab", "emulated")), real)
    assert is_emulated(board, replace(real, cpu_features=("fpu", "sse4_2", "avx2"))), "qemu-user shows the host's CPU"
    assert not is_emulated(board, replace(real, machine="x86_64", cpu_features=("sse4_2",)))


def test_an_older_harness_is_asked_in_its_own_words() -> None:
    device = SimulatedDevice(FAST, only_old_options=True)

    assert one(device).valid
    assert "--min-time" in device.programs[0]


def test_thread_counts_are_measured_side_by_side() -> None:
    result = measure(SimulatedDevice(FAST), threads=(1, 4))

    assert [m.threads for m in result.measurements] == [1, 4]
    assert {m.session for m in result.measurements} == {result.measurements[0].session}
    assert result.measurements[1].comparisons[0]["with"] == "ncnn-int8 x1"


def test_many_samples_come_in_several_answers() -> None:
    device = SimulatedDevice({f"ncnn-{i}": 40e-6 for i in ("int8", "fp16", "fp32")})

    result = measure(device, min_time=4.0)

    assert len(device.calls) > 1
    assert all(len(call[14].split()) > 0 for call in device.calls)
    assert all(m.valid and m.statistics["seconds"] >= 4 for m in result.measurements)


def test_cores_by_name_and_number() -> None:
    rk3588, phone = probe_of(RK3588), probe_of(PHONE)

    assert mask_of("all", rk3588) == ""
    assert mask_of("big", rk3588) == "f0" and mask_of("little", rk3588) == "f"
    assert mask_of("big", phone) == "f0"
    assert mask_of("4-7", rk3588) == "f0" and mask_of("0,2", rk3588) == "5"


@pytest.mark.parametrize("cores", ["big", "4-9", "x", "", "3-1", "-1", "99999"])
def test_cores_that_mean_nothing_are_refused(cores: str) -> None:
    with pytest.raises(UsageError, match="cores"):
        mask_of(cores, probe_of(RASPBERRY_PI_4))


def test_a_variant_that_isnt_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError) as caught:
        measure(SimulatedDevice(FAST), variants=("ncnn-fp64",))
    assert "ncnn-int8" in caught.value.hint
