"""Input sets: names, shapes and declarations that fit, and sentences for those that don't."""

from pathlib import Path
from typing import Any

import pytest

from edgepack import input_sets, plan, project
from edgepack.errors import ConfigError, UsageError
from edgepack.types import GateSpec, InputSet, Outcome, Precision, Preprocess, Status, TensorSpec, Variant
from tests.unit.test_plan import target

X = TensorSpec(name="x", dtype="float32", shape=(1, 3, 48, 320))
MASK = TensorSpec(name="mask", dtype="int64", shape=(1, 10))
ENGINES = ("ncnn", "onnxruntime", "tflite")


def wide(**changes: Any) -> InputSet:
    return InputSet(**{"name": "wide", "shapes": {"x": (1, 3, 48, 640)}, **changes})


@pytest.fixture
def made(tmp_path: Path) -> Any:
    source = tmp_path / "net.onnx"
    source.write_bytes(b"\x08\x07")
    for name in ("common.npz", "wide.npz"):
        (tmp_path / name).write_bytes(b"")

    def make(*sets: InputSet, **options: Any) -> plan.BuildPlan:
        return plan.make_plan(str(source), target(), output=tmp_path, sets=sets, **options)

    return make


def test_a_set_is_given_in_one_option_for_each_input_that_differs() -> None:
    (found,) = input_sets.declare(
        (), [("wide", "x", (1, 3, 48, 640), None), ("wide", "mask", (1, 20), None)], {}, ENGINES
    )

    assert found == wide(shapes={"x": (1, 3, 48, 640), "mask": (1, 20)})
    assert input_sets.split("wide:a:b=1x2") == ("wide", "a:b=1x2")
    with pytest.raises(UsageError, match="is not SET:NAME=SHAPE"):
        input_sets.split("x=1x3")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        (("Wide", "x", (1,), None), "'Wide' is no name for an input set"),
        (("a@b", "x", (1,), None), "'a@b' is no name"),
        (("-a", "x", (1,), None), "'-a' is no name"),
        (("", "x", (1,), None), "'' is no name"),
        (("a" * 33, "x", (1,), None), "is no name"),
        (("ncnn", "x", (1,), None), "'ncnn' is a name of edgepack's own"),
        (("int8", "x", (1,), None), "'int8' is a name of edgepack's own"),
        (("wide", "x", (1,), "int64"), "other shapes, not other types"),
    ],
)
def test_a_bad_name_or_a_type_is_refused(shape: Any, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        input_sets.declare((), [shape], {}, ENGINES)
    assert caught.value.id in ("EP209", "EP215")


def test_a_set_of_the_file_that_changes_no_shape_is_refused() -> None:
    with pytest.raises(UsageError, match="changes no shape"):
        input_sets.declare([InputSet(name="wide")], [], {}, ENGINES)


@pytest.mark.parametrize(
    ("sets", "id", "said"),
    [
        ([wide(shapes={"xx": (1,)})], "EP211", "the input 'xx', which the model doesn't have. Did you mean 'x'?"),
        ([wide(shapes={"x": (1, 3, 48)})], "EP211", "gives 'x' 3 axes (1x3x48), but the model's has 4: 1x3x48x320."),
        ([wide(shapes={"x": X.shape})], "EP215", "has the same shapes as the model without a set."),
        ([wide(), wide(name="again")], "EP215", "'again' has the same shapes as the input set 'wide'."),
    ],
)
def test_a_set_that_does_not_fit_the_model_is_refused(sets: list[InputSet], id: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        input_sets.check(sets, (X, MASK))

    assert said in caught.value.message
    assert caught.value.id == id


def test_inputs_that_a_set_does_not_name_keep_their_shapes() -> None:
    assert input_sets.check([wide()], (X, MASK)) == {"wide": {"x": (1, 3, 48, 640), "mask": (1, 10)}}


def test_data_are_for_all_sets_or_for_the_one_before_the_colon() -> None:
    assert input_sets.own_data("--calib", ["crops", "wide:long"], ["wide"]) == (Path("crops"), {"wide": Path("long")})
    assert input_sets.own_data("--calib", ["module:function"], ["wide"]) == (Path("module:function"), {})
    assert input_sets.own_data("--calib", [], []) == (None, {})


def test_two_data_for_the_same_are_refused() -> None:
    for values in (["a", "b"], ["wide:a", "wide:b"]):
        with pytest.raises(UsageError, match="given twice"):
            input_sets.own_data("--calib", values, ["wide"])


# --- declarations ---------------------------------------------------------------------------------------------------


def resized(how: Preprocess, own: Preprocess | None = None, name: str = "x") -> Preprocess:
    item = wide(preprocess={"x": own} if own else {})
    (found,) = input_sets.preprocess_of(item, (X,), {name: how}, {"x": (1, 3, 48, 640)}).values()
    return found


@pytest.mark.parametrize("name", ["x", "*"])
def test_sizes_of_a_declaration_that_are_the_inputs_own_follow_the_set(name: str) -> None:
    how = Preprocess(resize=(48, 320), fit="height", pad=(48, 320), mean=(127.5,))

    assert resized(how, name=name) == Preprocess(resize=(48, 640), fit="height", pad=(48, 640), mean=(127.5,))


def test_a_declaration_without_sizes_and_the_declaration_of_the_set_stay() -> None:
    assert resized(Preprocess(std=(255.0,))) == Preprocess(std=(255.0,))
    assert resized(Preprocess(resize=256, crop=(48, 320)), Preprocess(resize=(48, 640))) == Preprocess(resize=(48, 640))


def test_a_size_that_can_not_follow_is_asked_for_with_its_table() -> None:
    with pytest.raises(UsageError, match=r"from 48x320 to 48x640.*resize = 256, crop = \[48, 320\]") as caught:
        resized(Preprocess(resize=256, crop=(48, 320)))

    assert '[input-set.wide.input."x"]' in caught.value.hint


TOML = """
[input.x]
shape = [1, 3, 48, 320]
resize = [48, 320]
mean = 127.5
[input.state]
shape = [2, 1, 64]
[input-set.wide.input.x]
shape = [1, 3, 48, 640]
resize = [48, 640]
[input-set.tall.input.x]
shape = [1, 3, 96, 320]
"""


def test_shapes_and_sets_are_read_from_the_file_and_a_set_inherits_what_it_does_not_say(tmp_path: Path) -> None:
    path = tmp_path / "edgepack.toml"
    path.write_text(TOML)
    found = project.load(path)

    assert found.shapes == {"x": (1, 3, 48, 320), "state": (2, 1, 64)}
    assert set(found.preprocess) == {"x"}  # an input with nothing but a shape has no declaration
    wide, tall = found.input_sets
    assert (wide.name, wide.shapes) == ("wide", {"x": (1, 3, 48, 640)})
    assert wide.preprocess["x"] == Preprocess(resize=(48, 640), mean=(127.5,))
    assert (tall.name, tall.shapes, tall.preprocess) == ("tall", {"x": (1, 3, 96, 320)}, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[input.x]\nshape = 3\n", "edgepack.toml:2: shape = 3 should be"),
        ("[input.x]\nshape = [1, 0]\n", "edgepack.toml:2: shape = [1, 0] should be"),
        ('[input."*"]\nshape = [1]\n', "edgepack.toml:2: a shape needs the input's name"),
        ("[input-set.wide.inputs.x]\n", "unknown key 'inputs' in [input-set.wide]. Did you mean 'input'?"),
        ("[input-set.wide.input.x]\nmeen = 3\n", "edgepack.toml:2: unknown key 'meen'"),
        ("[input-set]\nwide = 3\n", "input-set.wide = 3 should be a table"),
        ("[input-set.wide]\ninput = 3\n", "edgepack.toml:2: input = 3 should be a table"),
        ("[input-set.wide.input]\nx = 3\n", "edgepack.toml:2: input-set.wide.input.x = 3 should be a table"),
    ],
)
def test_a_wrong_key_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "edgepack.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        project.load(path)

    assert said in caught.value.message


# --- the plan -------------------------------------------------------------------------------------------------------


def test_every_variant_is_planned_once_more_for_each_set(made: Any) -> None:
    chosen = made(wide(), engines=["ncnn"], precisions=[Precision.FP32, Precision.FP16])

    assert [str(v) for v in chosen.variants] == ["ncnn-fp32", "ncnn-fp16", "ncnn-fp32@wide", "ncnn-fp16@wide"]


def test_a_set_with_data_of_its_own_has_int8_where_the_others_have_none(made: Any, tmp_path: Path) -> None:
    chosen = made(wide(calibration=tmp_path / "wide.npz"), engines=["ncnn"])

    assert {str(v) for v in chosen.variants if v.precision is Precision.INT8} == {"ncnn-int8@wide"}
    with pytest.raises(UsageError, match=r"--calib gone.npz doesn't exist"):
        made(wide(calibration=Path("gone.npz")))


def test_a_sets_plan_has_its_shapes_its_data_and_its_variants_only(made: Any, tmp_path: Path) -> None:
    chosen = made(
        wide(samples=tmp_path / "wide.npz", data=tmp_path / "wide.npz"),
        calibration=tmp_path / "common.npz",
        samples=tmp_path / "common.npz",
        gate=GateSpec(metric="sqnr", min_sqnr=20.0, data=tmp_path / "common.npz"),
        preprocess={"x": Preprocess(resize=(48, 320))},
    )
    base, of_set = chosen.for_sets((X, MASK)).values()

    assert all(not v.input_set for v in base.variants)
    assert all(v.input_set == "wide" for v in of_set.variants) and len(of_set.variants) == len(base.variants)
    assert of_set.shapes == {"x": (1, 3, 48, 640), "mask": (1, 10)}
    assert of_set.preprocess == {"x": Preprocess(resize=(48, 640))}
    assert (of_set.calibration, of_set.samples) == (tmp_path / "common.npz", tmp_path / "wide.npz")
    assert (base.gate.data, of_set.gate.data) == (tmp_path / "common.npz", tmp_path / "wide.npz")
    assert base.samples == tmp_path / "common.npz"


def test_a_set_of_which_nothing_was_built_was_asked_for_by_name(made: Any) -> None:
    chosen = made(wide(), wide(name="tall", shapes={"x": (1, 3, 96, 320)}))

    def outcome(input_set: str, status: Status, engine: str = "ncnn") -> Outcome:
        return Outcome(variant=Variant(engine=engine, precision=Precision.FP32, input_set=input_set), status=status)

    missing = outcome("tall", Status.FAILED)
    some = [outcome("wide", Status.BUILT), outcome("wide", Status.FAILED, "tflite")]
    assert plan.named_failures(chosen, [outcome("", Status.BUILT), *some, missing]) == [missing]
