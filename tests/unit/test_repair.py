"""The repair: the fewest multiply-accumulates in float with which the engine passes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from edgepack import repair
from edgepack.explain import Layer
from edgepack.types import DEFAULT_INT8, Int8Options


def layer(name: str, noise: float, macs: float, op: str = "Conv") -> Layer:
    return Layer(
        layer=name, op=op, single_db=20.0, single_cosine=0.9, noise=noise, own_db=20.0, entire_db=20.0,
        entire_cosine=0.9, kernel_db=None, low=0.0, high=1.0, lowest=0.0, highest=1.0, saturated=0.0, macs=macs,
        weights=macs,
    )  # fmt: skip


LAYERS = (
    layer("a", 0.5, 0.02),
    layer("b", 0.2, 0.6),
    layer("c", 0.1, 0.01),
    layer("d", 0.05, 0.01),
    layer("e", 0, 0.3),
)
RULES = {"auto": 1.0, "mse": 1.01, "percentile": 1.02, "minmax": 1.03}


@dataclass(frozen=True)
class Try:
    """An engine whose noise is the sum of its layers', times what the rule for ranges makes of it."""

    int8: Int8Options
    noise: float
    most: float

    @property
    def passed(self) -> bool:
        return self.noise <= self.most

    @property
    def sqnr_db(self) -> float:
        return -10.0 * self.noise

    @property
    def rule(self) -> str:
        return "entropy"

    @property
    def in_float(self) -> frozenset[str]:
        return frozenset(self.int8.keep_float)


class Engine:
    def __init__(self, most: float, rules: dict[str, float] | None = None) -> None:
        self.most, self.rules = most, {**RULES, **(rules or {})}
        self.asked: list[Int8Options] = []

    def __call__(self, int8: Int8Options) -> Try:
        self.asked.append(int8)
        noise = sum(x.noise for x in LAYERS if x.layer not in int8.keep_float) * self.rules[int8.ranges]
        return Try(int8, noise, self.most)

    def repair(self, most_macs: float, int8: Int8Options = DEFAULT_INT8) -> repair.Repair:
        return repair.repair(self(int8), self, lambda _: LAYERS, most_macs)


def test_the_layer_with_most_noise_per_work_is_left_in_float_and_no_other() -> None:
    found = Engine(most=0.4).repair(0.05)

    assert [kept.layer for kept in found.kept] == ["a"]
    assert found.passed is not None and found.passed.int8.keep_float == ("a",)


def test_as_many_layers_as_needed_are_left_in_float() -> None:
    assert {kept.layer for kept in Engine(most=0.21).repair(0.05).kept} == {"a", "c", "d"}


def test_another_rule_for_ranges_is_free_and_comes_first() -> None:
    found = Engine(most=0.4, rules={"percentile": 0.3}).repair(0.05)

    assert found.kept == () and found.passed is not None and found.passed.int8.ranges == "percentile"


def test_a_rule_that_the_user_chose_is_kept() -> None:
    engine = Engine(most=0.4, rules={"percentile": 0.3})
    found = engine.repair(0.05, Int8Options(ranges="minmax"))

    assert {asked.ranges for asked in engine.asked} == {"minmax"}
    assert [kept.layer for kept in found.kept] == ["a"]


def test_layers_beyond_the_budget_stay_in_integers_and_the_repair_fails() -> None:
    engine = Engine(most=0.1)

    assert engine.repair(0.05).passed is None
    assert all("b" not in asked.keep_float for asked in engine.asked)


def test_with_a_larger_budget_the_large_layer_goes_too() -> None:
    assert "b" in {kept.layer for kept in Engine(most=0.1).repair(0.7).kept}


def test_without_a_ranking_there_is_no_repair_and_no_endless_search() -> None:
    engine = Engine(most=0.1)
    found = repair.repair(engine(Int8Options()), engine, lambda _: (), 0.05)

    assert found.passed is None and found.tries == len(repair.OTHER_RANGES)


def test_tries_are_bounded() -> None:
    many = [layer(f"l{i}", 0.01 + i * 1e-5, 0.0001) for i in range(300)]

    def make(int8: Int8Options) -> Try:
        return Try(int8, 300 - len(int8.keep_float), 150)

    found = repair.repair(make(Int8Options()), make, lambda _: many, 1.0)

    assert found.passed is not None and found.tries <= repair.MOST_TRIES


def test_a_layer_that_the_engine_does_not_know_by_name_is_not_said_to_be_in_float() -> None:
    @dataclass(frozen=True)
    class Forgetful(Try):
        @property
        def in_float(self) -> frozenset[str]:
            return super().in_float - {"c"}

    def make(int8: Int8Options) -> Try:
        noise = sum(x.noise for x in LAYERS if x.layer not in {*int8.keep_float} - {"c"})
        return Forgetful(int8, noise, 0.31)

    found = repair.repair(make(DEFAULT_INT8), make, lambda _: LAYERS, 0.05)

    assert found.passed is not None and [kept.layer for kept in found.kept] == ["a", "d"]


def test_an_engine_that_knows_no_layer_by_name_is_not_tried_on_and_on() -> None:
    @dataclass(frozen=True)
    class Ignorant(Try):
        @property
        def in_float(self) -> frozenset[str]:
            return frozenset()

    def make(int8: Int8Options) -> Try:
        return Ignorant(int8, RULES[int8.ranges], 0.5)

    found = repair.repair(make(DEFAULT_INT8), make, lambda _: LAYERS, 0.05)

    assert found.passed is None and found.kept == () and found.tries == len(repair.OTHER_RANGES) + 1


def test_the_rule_that_auto_came_to_is_not_tried_again() -> None:
    @dataclass(frozen=True)
    class Told(Try):
        @property
        def rule(self) -> str:
            return "mse" if self.int8.ranges == "auto" else self.int8.ranges

    asked = []

    def make(int8: Int8Options) -> Try:
        asked.append(int8.ranges)
        return Told(int8, 1.0, 0.5)

    repair.repair(make(DEFAULT_INT8), make, lambda _: LAYERS, 0.05)

    assert "mse" not in asked


def test_where_ranges_change_nothing_they_are_tried_once() -> None:
    engine = Engine(most=0.4, rules={"auto": 1.0, "mse": 1.0, "percentile": 1.0, "minmax": 1.0})
    found = engine.repair(0.05)

    assert [kept.layer for kept in found.kept] == ["a"]
    assert sum(not asked.keep_float for asked in engine.asked) == 2


def test_a_layer_with_most_of_the_weights_comes_after_one_with_as_much_noise_and_few() -> None:
    heavy, light = replace(layer("heavy", 0.5, 0.01), weights=0.7), replace(layer("light", 0.4, 0.01), weights=0.01)

    assert [x.layer for x in repair.candidates([heavy, light], 0.05)] == ["light", "heavy"]


def test_a_few_loud_layers_among_many_are_found_in_few_tries() -> None:
    many = [layer(f"l{i}", 2.0**-i, 0.002) for i in range(60)]
    loud = {x.layer: x.noise for x in many}

    def make(int8: Int8Options) -> Try:
        return Try(int8, sum(noise for name, noise in loud.items() if name not in int8.keep_float), 0.13)

    found = repair.repair(make(DEFAULT_INT8), make, lambda _: many, 0.05)

    assert [kept.layer for kept in found.kept] == ["l0", "l1", "l2", "l3"] and found.tries <= 8


def test_an_engine_that_cannot_keep_a_layer_in_float_is_no_crash() -> None:
    def make(int8: Int8Options) -> Try | None:
        return None if int8.keep_float else Try(int8, 1.0, 0.5)

    first = make(Int8Options())
    assert first is not None
    assert repair.repair(first, make, lambda _: LAYERS, 0.05).passed is None


@pytest.mark.parametrize("order", [1, -1])
def test_the_same_layers_in_another_order_give_the_same_choice(order: int) -> None:
    assert [x.layer for x in repair.candidates(LAYERS[::order], 0.05)] == ["a", "c", "d"]
