"""The other order of the channels is named when the model is clearly surer of it, and only then."""

from pathlib import Path

import numpy as np
import pytest

from edgepack import channel_order, preprocess
from edgepack.lint import Report, check_means
from edgepack.types import Model, Preprocess, TensorSpec

IMAGENET = Preprocess(mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))
RNG = np.random.default_rng(5)


def model(*outputs: tuple[int, ...], inputs: tuple[tuple[int, ...], ...] = ((1, 3, 8, 8),)) -> Model:
    def specs(letter: str, shapes: tuple[tuple[int, ...], ...]) -> tuple[TensorSpec, ...]:
        return tuple(TensorSpec(name=f"{letter}{i}", dtype="float32", shape=s) for i, s in enumerate(shapes))

    return Model(
        path=Path(), digest="", opset=17, inputs=specs("in", inputs), outputs=specs("out", outputs), operators=()
    )


@pytest.mark.parametrize(
    ("found", "given"),
    [
        ((0, 1), model((1, 10))),
        ((0, 3), model((1, 10), inputs=((1, 8, 8, 3),))),
        ((1, 1), model((1, 40, 97), inputs=((1, 5), (1, 3, 8, 8)))),
        (None, model((1, 2))),
        (None, model((1, 10), (1, 4))),
        (None, model((1, 21, 8, 8))),
        (None, model((1, 10), inputs=((1, 1, 8, 8),))),
        (None, model((1, 10), inputs=((1, 3, 8, 8), (1, 3, 8, 8)))),
    ],
)
def test_only_a_classifier_with_one_colour_picture_is_asked(found: tuple[int, int] | None, given: Model) -> None:
    assert channel_order.picture(given, {}) == found


def test_exchanged_is_what_the_other_declaration_gives() -> None:
    image = RNG.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    given = preprocess.apply(image, IMAGENET, (1, 3, 8, 8), "float32")
    other = preprocess.apply(np.ascontiguousarray(image[..., ::-1]), IMAGENET, (1, 3, 8, 8), "float32")

    np.testing.assert_allclose(channel_order.exchanged(given, 1, IMAGENET), other, atol=1e-5)
    np.testing.assert_array_equal(channel_order.exchanged(given, 1, None), given[:, ::-1])


def test_gray_samples_are_left_out_and_few_coloured_ones_tell_nothing(tmp_path: Path) -> None:
    gray = np.repeat(RNG.standard_normal((10, 1, 1, 8, 8)), 3, axis=2)
    coloured = RNG.standard_normal((100, 1, 3, 8, 8))
    np.save(tmp_path / "0.npy", np.concatenate([gray, coloured]).astype(np.float32))
    out = tmp_path / "out"
    out.mkdir()

    count = channel_order.both_orders(tmp_path, model((1, 10)), (0, 1), {}, out)

    both = np.load(out / "0.npy")
    assert channel_order.LEAST <= count <= channel_order.MOST and both.shape == (2 * count, 1, 3, 8, 8)
    np.testing.assert_array_equal(both[0], coloured[0].astype(np.float32))
    np.testing.assert_array_equal(both[count:], both[:count, :, ::-1])

    np.save(tmp_path / "0.npy", np.concatenate([gray, coloured[:15]]).astype(np.float32))
    assert channel_order.both_orders(tmp_path, model((1, 10)), (0, 1), {}, out) == 0


def answers(given: float, other: float, count: int = 32, spread: float = 1.0) -> np.ndarray:
    """Logits of 10 classes, the first larger by `given` and then by `other`, give or take `spread`."""
    logits = RNG.standard_normal((2 * count, 1, 10))
    margins = np.repeat([given, other], count) + spread * RNG.standard_normal(2 * count)
    logits[:, 0, 0] += margins
    return logits.astype(np.float32)


def test_clearly_surer_in_the_other_order_is_told_with_both_figures() -> None:
    found = channel_order.judge(answers(2, 5), 32)
    assert found is not None and found[1] > found[0]

    spec = TensorSpec(name="x", dtype="float32", shape=(1, 3, 8, 8))
    said = channel_order.sentence("photos", spec, IMAGENET, 32, *found)
    assert f"{found[1]:.2f} instead of {found[0]:.2f}" in said and 'color = "BGR" in place of "RGB"' in said
    assert "Reverse the channel axis" in channel_order.sentence("photos", spec, None, 32, *found)


def test_equal_or_better_as_given_is_silent() -> None:
    verdicts = [channel_order.judge(answers(4, 4, spread=2.0), 32) for _ in range(200)]

    assert verdicts.count(None) >= 198
    assert channel_order.judge(answers(5, 2), 32) is None
    same = answers(3, 3)
    same[32:] = same[:32]
    assert channel_order.judge(same, 32) is None


def test_rows_that_are_no_probabilities_tell_nothing() -> None:
    boxes = np.concatenate([np.ones((32, 1, 50, 6)), 5 * np.ones((32, 1, 50, 6))]) * np.arange(6)

    assert channel_order.judge(boxes.astype(np.float32), 32) is None


def test_imagenets_means_in_the_wrong_order_are_told() -> None:
    for color, backwards in (("RGB", True), ("BGR", False)):
        report = Report()
        mean = IMAGENET.mean[::-1] if backwards else IMAGENET.mean
        check_means({"x": Preprocess(color=color, mean=mean, std=IMAGENET.std)}, report)
        assert "'x' is declared as " + color in report.said[0][1]

    report = Report()
    check_means({"x": IMAGENET, "y": Preprocess(mean=(127.5,), std=(127.5,)), "z": Preprocess(color="GRAY")}, report)
    assert not report.said
