"""results.jsonl: complete, described by a schema, appended whole."""

from __future__ import annotations

import json
from dataclasses import replace
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from edgepack import figures, records
from edgepack.errors import IntegrityError
from edgepack.types import Measurement
from tests.conftest import ROOT
from tests.simulated_device import SimulatedDevice
from tests.sysfs import TREES
from tests.unit.test_bench import FAST, SLOW, measure

SCHEMA = json.loads((ROOT / "docs" / "measurement.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def check(measurement: Measurement) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(json.dumps(records.document(measurement), allow_nan=False))
    VALIDATOR.validate(content)
    return content


@pytest.mark.parametrize("tree", TREES)
@pytest.mark.parametrize("how", ["native", "emulated"])
def test_every_measurement_is_as_the_schema_says(tree: str, how: str) -> None:
    for measurement in measure(SimulatedDevice(SLOW, tree=dict(TREES[tree])), how=how).measurements:
        check(measurement)


def test_the_schema_is_one_and_forbids_ranks_where_there_are_none() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    (figure,) = measure(SimulatedDevice(FAST, hot=110.0, warm_seconds=0.2)).measurements
    content = check(figure)

    assert not content["valid"]
    for change in ({"rank": 1}, {"reason": ""}, {"surplus": 1}, {"blocks": []}, {"time": "yesterday"}):
        with pytest.raises(jsonschema.ValidationError):
            VALIDATOR.validate({**content, **change})
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate({key: value for key, value in content.items() if key != "device"})


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    results = tmp_path / "deep" / "results.jsonl"
    first, second = (measure(SimulatedDevice(SLOW, seed=seed)).measurements for seed in (1, 2))

    records.append(results, first)
    records.append(results, second)

    assert records.read(results) == [*first, *second]


def test_the_statistics_follow_from_the_samples_of_the_record(tmp_path: Path) -> None:
    (figure,) = measure(SimulatedDevice(FAST)).measurements
    records.append(tmp_path / "r.jsonl", [figure])

    (again,) = records.read(tmp_path / "r.jsonl")

    assert figures.statistics(again.blocks, again.warmup_rounds) == figure.statistics


def test_programs_that_append_at_the_same_time_dont_mix_their_lines(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    (figure,) = measure(SimulatedDevice(FAST)).measurements
    with ThreadPool(8) as pool:
        pool.map(lambda i: records.append(results, [replace(figure, model=str(i))] * 5), range(16))

    assert len(records.read(results)) == 80


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    records.append(results, measure(SimulatedDevice(FAST)).measurements)
    for line in ("{", "[]", "{}", '{"schema": 2}'):
        text = results.read_text().splitlines()[0]
        results.write_text(f"{text}\n{line}\n")
        with pytest.raises(IntegrityError, match="line 2"):
            records.read(results)


def test_the_table_of_figures_shows_what_may_be_believed() -> None:
    good = records.table(measure(SimulatedDevice(SLOW)))
    hot = records.table(measure(SimulatedDevice(SLOW, hot=110.0, warm_seconds=0.2)))

    assert "times as long as ncnn-int8 x1" in good and "NOT VALID" not in good
    assert "performance 2400 to 2400 MHz" in good
    assert "NOT VALID: " in hot and "Tried 3 times" in hot and " ?" in hot
    assert "p99 299" in records.table(measure(SimulatedDevice({"ncnn-int8": 0.3})))
