"""The accuracy gate, explain-int8 and the repair on a small net with one broken layer, with the real engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack import config, converter, evaluation, explain, explaining, metrics, plan, settling, steps
from edgepack.cache import Cache
from edgepack.errors import MetricError, ToolMissing, UsageError
from edgepack.plan import BuildPlan
from edgepack.types import GateSpec, Int8Options, Precision
from tests.conftest import missing
from tests.models import samples

BROKEN = "broken"
FAST = Int8Options(effort="fast")


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    try:
        for script in ("quantize_onnx", "onnx_to_ort", "run_onnxruntime", "import_onnx", "simplify_onnx"):
            converter.environment(script)
    except ToolMissing as error:
        missing(f"{error} ({error.hint})")


def broken_net(path: Path) -> Path:
    """Four convolutions and a classifier. One channel that the second layer reads is never anything but zero, and has
    weights 300 times the others': they take the whole scale, and what counts is rounded to next to nothing."""
    random = np.random.default_rng(5)

    def weights(name: str, *shape: int) -> np.ndarray:
        return (random.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    arrays = {"w1": weights("w1", 8, 3, 3, 3), "w2": weights("w2", 8, 8, 3, 3)}
    arrays |= {"w3": weights("w3", 8, 8, 3, 3), "w4": weights("w4", 16, 8, 3, 3), "w5": weights("w5", 10, 16)}
    arrays |= {f"b{i}": np.zeros(len(arrays[f"w{i}"]), np.float32) for i in range(1, 6)}
    arrays["w1"][0], arrays["b1"][0] = 0.0, -1.0
    arrays["w2"][:, 0] *= 300.0
    same = {"pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["image", "w1", "b1"], ["c1"], **same),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], [BROKEN], **same),
        helper.make_node("Relu", [BROKEN], ["r2"]),
        helper.make_node("Conv", ["r2", "w3", "b3"], ["c3"], **same),
        helper.make_node("Relu", ["c3"], ["r3"]),
        helper.make_node("Conv", ["r3", "w4", "b4"], ["c4"], strides=[2, 2], **same),
        helper.make_node("Relu", ["c4"], ["r4"]),
        helper.make_node("GlobalAveragePool", ["r4"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w5", "b5"], ["scores"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "broken",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("accuracy")
    broken_net(found / "net.onnx")
    samples(found / "calib.npz")
    samples(found / "eval.npz", seed=9, count=30)
    return found


@pytest.fixture(scope="module")
def store(folder: Path) -> Cache:
    return Cache(folder / "cache")


def planned(folder: Path, engine: str = "onnxruntime", **gate: Any) -> BuildPlan:
    return plan.make_plan(
        str(folder / "net.onnx"),
        config.load_target("rk3588"),
        calibration=folder / "calib.npz",
        engines=[engine],
        precisions=[Precision.INT8],
        gate=GateSpec(**{"max_float_macs": 60.0, **gate}),
        int8=FAST,
        output=folder,
    )


def made(chosen: BuildPlan, store: Cache) -> tuple[settling.Maker, Any]:
    model = steps.import_model(chosen, store)
    found = steps.samples_of(chosen, store, model)
    reference = steps.run_reference(chosen, store, model, found)
    model = steps.simplify(store, model, found, steps.run_onnx(store, model, found, "run"))
    variant = next(v for v in chosen.variants if v.precision is Precision.INT8)
    base = chosen.engine(variant.engine).base(Precision.INT8)
    maker = settling.Maker(
        plan=chosen,
        cache=store,
        variant=variant,
        model=model,
        samples=found,
        reference=reference,
        base=None if base is None else steps.export(store, chosen.engine(variant.engine), model, base, None, None),
        data=evaluation.prepare(chosen, store, model, found),
    )
    return maker, maker.export(chosen.int8)


def explained(folder: Path, store: Cache, int8: Int8Options = FAST) -> explain.Explanation:
    _, found = explaining.of_model(replace(planned(folder), int8=int8, named=frozenset()), store, None)
    return found["onnxruntime"]


def test_explain_finds_the_one_broken_layer(folder: Path, store: Cache) -> None:
    found = explained(folder, store)
    worst, second = found.ranked()[:2]

    assert worst.layer == BROKEN
    assert worst.single_db < 20.0 and worst.noise > 10.0 * second.noise
    assert len([layer for layer in found.layers if layer.op in ("Conv", "Gemm")]) == 5


def test_a_layer_is_undisturbed_before_the_broken_one_and_disturbed_after_it(folder: Path, store: Cache) -> None:
    entire = {layer.layer: layer.entire_db for layer in explained(folder, store).layers}

    assert entire["c1"] > 30.0 > entire[BROKEN] and entire["c3"] < 20.0


def test_the_kernels_of_onnxruntime_do_what_the_simulation_says(folder: Path, store: Cache) -> None:
    told = [(x.entire_db, x.kernel_db) for x in explained(folder, store).layers if x.kernel_db is not None]

    assert len(told) == 4
    assert all(abs(entire - kernel) < 1.5 for entire, kernel in told if kernel is not None)


def test_shares_of_work_and_weights_add_up_and_are_those_of_the_shapes(folder: Path, store: Cache) -> None:
    layers = explained(folder, store).layers
    first = next(layer for layer in layers if layer.layer == "c1")
    work = 16 * 16 * 8 * 27, 16 * 16 * 8 * 72 * 2, 8 * 8 * 16 * 72, 160

    assert sum(layer.macs for layer in layers) == pytest.approx(1.0)
    assert first.macs == pytest.approx(work[0] / sum(work))


def test_a_layer_kept_in_float_is_no_part_of_the_error(folder: Path, store: Cache) -> None:
    found = explained(folder, store, replace(FAST, keep_float=(BROKEN,)))

    assert found.sqnr_db > explained(folder, store).sqnr_db + 8.0
    assert BROKEN not in {layer.layer for layer in found.layers if layer.single_db < 40.0}


def test_the_repair_leaves_the_broken_layer_in_float_and_no_other(folder: Path, store: Cache) -> None:
    maker, exported = made(planned(folder, metric="sqnr", min_sqnr=20.0, data=folder / "eval.npz"), store)
    settled = settling.settle(maker, exported)

    assert settled.facts is not None and [kept.layer for kept in settled.facts.kept_float] == [BROKEN]
    assert settled.gate is not None and settled.gate.passed and settled.gate.score is not None
    assert settled.gate.score >= 20.0 and settled.facts.size > settled.facts.full_int8_size


def test_without_repair_the_variant_is_dropped_with_the_figures(folder: Path, store: Cache) -> None:
    spec = {"metric": "sqnr", "min_sqnr": 20.0, "data": folder / "eval.npz"}
    maker, exported = made(planned(folder, **spec, repair=False), store)

    with pytest.raises(settling.Dropped, match=r"SQNR is \d+\.\d dB on 30 evaluation samples, the gate is 20 dB") as e:
        settling.settle(maker, exported)
    assert e.value.id == "EP103"


def test_a_gate_that_no_layer_in_float_can_reach_says_what_was_tried(folder: Path, store: Cache) -> None:
    spec = {"metric": "sqnr", "min_sqnr": 20.0, "data": folder / "eval.npz", "max_float_macs": 1.0}
    maker, exported = made(planned(folder, **spec), store)

    with pytest.raises(settling.Dropped, match=r"with at most 1 % of the multiply-accumulates in float"):
        settling.settle(maker, exported)


def test_evaluation_with_the_calibration_data_is_told_every_time(
    folder: Path, store: Cache, capfd: pytest.CaptureFixture[str]
) -> None:
    given = np.load(folder / "calib.npz")
    fresh = np.load(folder / "eval.npz")
    np.savez(folder / "mixed.npz", image=np.concatenate([fresh["image"][:5], given["image"][:1] * np.float32(1.001)]))
    said = []
    for data in ("calib.npz", "mixed.npz", "mixed.npz", "eval.npz"):
        made(planned(folder, metric="top1", max_drop=100.0, data=folder / data), store)
        said.append(capfd.readouterr().err)

    assert f"evaluation samples of {folder / 'calib.npz'} are also in the calibration set" in said[0]
    assert all("1 of the 6 evaluation samples" in text and "sample 5 and sample 0" in text for text in said[1:3])
    assert "evaluation samples" not in said[3]


def test_evaluation_in_pieces_gives_the_same_outputs(
    folder: Path, store: Cache, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    chosen = planned(folder, metric="top1", max_drop=100.0, data=folder / "eval.npz")
    maker, _ = made(chosen, store)
    assert maker.data is not None
    monkeypatch.setattr(evaluation, "CHUNK", 40_000)
    in_pieces = evaluation.prepare(chosen, Cache(tmp_path / "cache"), maker.model, maker.samples)

    assert in_pieces is not None and in_pieces.reference.digest == maker.data.reference.digest


METRIC = """
import numpy as np

def agreement(reference, outputs, labels):
    wanted, got = np.load(reference / "0.npy"), np.load(outputs / "0.npy")
    print("talk")
    return float((wanted.argmax(-1) == got.argmax(-1)).mean())

def raises(reference, outputs, labels):
    raise KeyError("boxes\\x1b[31m")

def exits(reference, outputs, labels):
    raise SystemExit(0)

def nothing(reference, outputs, labels):
    pass

def not_a_number(reference, outputs, labels):
    return np.float32("nan")

def text(reference, outputs, labels):
    return "0.9"

def needs_labels(reference, outputs, labels):
    return len(labels) and int(labels.sum())
"""


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("raises", r"raised KeyError: 'boxes\\x1b\[31m' \(own_metric.py, line 10\)"),
        ("exits", "raised SystemExit"),
        ("nothing", "returned NoneType, not a number"),
        ("text", "returned str, not a number"),
        ("not_a_number", "returned nan, which can't be compared"),
        ("absent", "has no function 'absent'"),
    ],
)
def test_a_function_of_the_users_that_fails_is_a_sentence(
    function: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(MetricError, match=said):
        own_score(function, tmp_path, monkeypatch)


def test_a_function_of_the_users_gets_outputs_and_labels_and_its_talk_is_no_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert own_score("agreement", tmp_path, monkeypatch) == 0.5
    assert own_score("needs_labels", tmp_path, monkeypatch, labels=[3, 4]) == 7.0


def own_score(function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, labels: list[int] | None = None) -> float:
    (tmp_path / "own_metric.py").write_text(METRIC)
    monkeypatch.chdir(tmp_path)
    for name, rows in (("reference", [[0, 1], [1, 0]]), ("got", [[0, 1], [0, 1]])):
        (tmp_path / name).mkdir(exist_ok=True)
        np.save(tmp_path / name / "0.npy", np.array(rows, np.float32))
    (tmp_path / "out").mkdir(exist_ok=True)
    if labels is not None:
        np.save(tmp_path / "labels.npy", np.array(labels))
    listed = tmp_path / "labels.npy" if labels is not None else None
    folders = tmp_path / "reference", tmp_path / "got"
    return metrics.own_score(f"own_metric:{function}", *folders, listed, tmp_path / "out", None, [])


def test_a_bundles_own_word_on_int8_needs_no_model(tmp_path: Path) -> None:
    from edgepack import bundle

    kept = {"layer": "c\x1b", "op": "Conv", "macs": 0.01, "weights": 0.02, "single_db": 9.0}
    facts = {
        "name": "m",
        "target": {"name": "rk3588"},
        "model": {"digest": "d"},
        "variants": [
            {
                "name": "ncnn-int8",
                "engine": "ncnn",
                "int8": {"effort": "normal", "ranges": "mse", "kept_float": [kept]},
                "gate": None,
                "verdict": {"metrics": [{"output": "y", "sqnr_db": 21.0, "cosine": 0.99}]},
            }
        ],
    }
    bundle.write_manifest(tmp_path, facts)
    text = explaining.bundle_text(explaining.of_bundle(tmp_path, None))

    assert "effort normal, ranges mse" in text and "c\\x1b" in text and "21.0 dB" in text
    assert explaining.of_bundle(tmp_path, None, ["ncnn"])["variant"] == "ncnn-int8"
    with pytest.raises(UsageError, match="no INT8 variant of tflite"):
        explaining.of_bundle(tmp_path, None, ["tflite"])


SCRIPTS = {
    "ncnn": ("onnx_to_ncnn", "quantize_ncnn", "run_ncnn"),
    "tflite": ("onnx_to_tflite", "quantize_tflite", "run_tflite"),
}


@pytest.fixture(params=sorted(SCRIPTS))
def engine(request: pytest.FixtureRequest) -> str:
    try:
        for script in SCRIPTS[request.param]:
            converter.environment(script)
    except ToolMissing as error:
        missing(f"{error} ({error.hint})")
    return str(request.param)


def test_another_engines_own_layers_stand_beside_the_simulated_ones(folder: Path, store: Cache, engine: str) -> None:
    facts, views = explaining.of_model(planned(folder, engine), store, None)
    assert "reason" not in facts["engines"][engine]
    layers = {layer.layer: layer for layer in views[engine].layers}
    first, broken = layers["c1"], layers[BROKEN]

    assert facts["engines"][engine]["layers"].keys() >= {"c1", BROKEN, "c3", "c4", "scores"}
    assert first.kernel_db is not None and broken.kernel_db is not None
    assert first.how == broken.how == "int8" and first.kernel_db > 30.0 > broken.kernel_db
    assert first.low is not None and first.lowest is not None and first.low == pytest.approx(first.lowest, rel=0.2)
    assert engine in explaining.text(facts, views, 0)


def test_the_repair_leaves_the_same_layer_in_float_on_another_engine(folder: Path, store: Cache, engine: str) -> None:
    maker, exported = made(planned(folder, engine, metric="sqnr", min_sqnr=20.0, data=folder / "eval.npz"), store)
    settled = settling.settle(maker, exported)

    assert settled.facts is not None and [kept.layer for kept in settled.facts.kept_float] == [BROKEN]
    assert settled.in_float == {BROKEN} and settled.facts.tries <= 6
    assert settled.gate is not None and settled.gate.score is not None and settled.gate.score >= 20.0
