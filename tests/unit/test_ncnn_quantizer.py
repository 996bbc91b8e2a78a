"""The quantizer's arithmetic and its walk through .param and .bin, on files made by hand."""

from __future__ import annotations

import importlib
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import edgepack

FOLDER = Path(edgepack.__file__).parent / "converters"
sys.path.insert(0, str(FOLDER))
files, halving, plans, watching, ranges, int8, quantizing, running = map(
    importlib.import_module,
    ("ncnn_files", "ncnn_half", "ncnn_plan", "ncnn_watch", "ncnn_ranges", "ncnn_int8", "quantize_ncnn", "ncnn_dynamic"),
)
RNG = np.random.default_rng(3)


def layer(kind: str, *params: str, bottoms: int = 1) -> str:
    return f"{kind} l {bottoms} 1 {' '.join(f'b{i}' for i in range(bottoms))} t {' '.join(params)}"


def counts(line: str) -> list[tuple[int, bool]]:
    parsed = files._layer(line)
    return [(block.count, block.tagged) for block in files.WEIGHTED[parsed.type](parsed)]


def tagged(values: np.ndarray, tag: int = 0) -> bytes:
    return tag.to_bytes(4, "little") + values.tobytes() + bytes(-values.nbytes % 4)


def blob(*arrays: np.ndarray, cuts: set[int] | None = None) -> Any:
    found = watching.Blob(watching.Seen("the blob x", None))
    for array in arrays:
        found.add(np.asarray(array, np.float32), cuts or set())
    return found


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        (layer("Convolution", "0=8", "1=3", "5=1", "6=216"), [(216, True), (8, False)]),
        (layer("Convolution", "0=8", "1=3", "6=216"), [(216, True)]),
        (layer("Convolution", "0=8", "19=1", bottoms=2), []),
        (layer("Deconvolution", "0=8", "5=1", "6=16", "19=1"), [(16, True), (8, False)]),
        (layer("Deconvolution", "0=8", "5=1", "6=16", "28=1"), []),
        (layer("InnerProduct", "0=10", "1=1", "2=50"), [(50, True), (10, False)]),
        (layer("Embed", "0=4", "1=7", "2=0", "3=28"), [(28, True)]),
        (layer("BatchNorm", "0=6"), [(6, False)] * 4),
        (layer("PReLU", "0=6"), [(6, False)]),
        (layer("Scale", "0=6", "1=1"), [(6, False)] * 2),
        (layer("Scale", "0=-233", bottoms=2), []),
        (layer("LayerNorm", "0=6", "1=1e-5"), [(6, False)] * 2),
        (layer("LayerNorm", "0=6", "2=0"), []),
        (layer("GroupNorm", "0=2", "1=6"), [(6, False)] * 2),
        (layer("RMSNorm", "0=6"), [(6, False)]),
        (layer("LSTM", "0=5", "1=60", "2=0"), [(60, True), (20, True), (100, True)]),
        (layer("LSTM", "0=5", "1=96", "3=8"), [(96, True), (32, True), (160, True), (40, True)]),
        (layer("GRU", "0=5", "1=90", "2=2"), [(90, True), (40, True), (150, True)]),
        (layer("RNN", "0=5", "1=15"), [(15, True), (5, True), (25, True)]),
        (layer("Gemm", "5=1", "6=1", "8=3", "9=4", "10=4"), [(12, True), (3, True)]),
        (layer("Gemm", "5=1", "6=1", "8=3", "9=4", "10=-1"), [(12, True)]),
        (layer("MultiHeadAttention", "0=4", "1=2", "2=16"), [(16, True), (4, False)] * 4),
        (layer("MemoryData", "0=3", "1=4", "2=5"), [(60, False)]),
        (layer("MemoryData", "0=3", "21=0"), [(3, True)]),
        (layer("Padding", "6=3"), [(3, False)]),
        (layer("Padding", "0=1"), []),
    ],
)
def test_the_arrays_of_each_layer_are_those_that_ncnn_reads(line: str, wanted: list[tuple[int, bool]]) -> None:
    assert counts(line) == wanted


def test_every_layer_of_ncnn_is_known_once() -> None:
    assert not set(files.WEIGHTED) & files.WEIGHTLESS
    assert len(files.WEIGHTED) + len(files.WEIGHTLESS) > 100


def test_a_param_file_that_is_not_touched_keeps_its_meaning() -> None:
    text = (
        '7767517\n3 4\nInput in0 0 1 in0\nSplit s 1 2 in0 a b\nReshape r 1 1 a c 6="*(0w,2)" -23310=2,0.0,6.0 2=1e-05\n'
    )
    written = files.write_param(files.read_param(text))
    assert [line.split() for line in written.splitlines()] == [line.split() for line in text.splitlines()]


def test_raw_and_half_arrays_are_walked_exactly() -> None:
    layers = files.read_param(
        "7767517\n2 2\n" + layer("InnerProduct", "0=1", "1=1", "2=3") + "\n" + layer("PReLU", "0=2")
    )
    weights = np.array([1.5, -2.0, 0.25], np.float16)
    content = tagged(weights, files.HALF) + np.array([7.0, 8.0, 9.0], np.float32).tobytes()
    data = np.frombuffer(content, np.uint8)
    blocks = files.locate(layers, data)
    assert files.floats(blocks[0][0], data).tolist() == [1.5, -2.0, 0.25]
    assert files.floats(blocks[0][1], data).tolist() == [7.0]
    assert files.floats(blocks[1][0], data).tolist() == [8.0, 9.0]


@pytest.mark.parametrize(
    ("line", "content", "message"),
    [
        (layer("Custom", "0=1"), b"", "type Custom"),
        (layer("PReLU", "0=2"), bytes(4), "ends inside the weights of l"),
        (layer("PReLU", "0=2"), bytes(12), "12 bytes, but its layers need 8"),
        (layer("InnerProduct", "0=1", "2=4"), tagged(np.zeros(4, np.int8), files.INT8), "tag 0x000d4b38"),
        (layer("InnerProduct", "0=1", "2=4", "8=2"), b"", "quantized already"),
        (layer("Gemm", "18=2"), b"", "quantized already"),
    ],
)
def test_a_bin_that_does_not_fit_is_refused_by_name(line: str, content: bytes, message: str) -> None:
    with pytest.raises(SystemExit, match=message):
        files.locate(files.read_param(f"7767517\n1 1\n{line}\n"), np.frombuffer(content, np.uint8))


RULES = ["mse", "percentile", "minmax", "average", "entropy"]


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=200))
def test_the_whole_range_saturates_no_value(values: list[float]) -> None:
    array = np.array(values, np.float32)
    for shiftable in (False, True):
        coding = ranges.coding(blob(array), "minmax", shiftable=shiftable)
        integers = coding.sign * np.rint(array.astype(np.float64) * coding.scale) + coding.zero
        assert np.abs(integers).max() <= 127.5 + 1e-3


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shiftable", [False, True])
@pytest.mark.parametrize(
    "values", [np.zeros(10), np.full(10, 3.0), np.full(10, -1e-20), np.append(np.zeros(999), 1e20), np.array([-5.0])]
)
def test_no_range_gives_a_factor_of_zero_infinity_or_nan(rule: str, shiftable: bool, values: np.ndarray) -> None:
    coding = ranges.coding(blob(values), rule, shiftable=shiftable)
    assert np.isfinite(np.float32(coding.scale)) and np.float32(coding.scale) > 0
    assert 0 <= coding.zero <= 127 and abs(coding.sign) == 1


@pytest.mark.parametrize("rule", RULES)
def test_values_come_back_within_the_noise_of_their_rule(rule: str) -> None:
    values = RNG.normal(0, 1, 20_000)
    for shiftable, array in ((False, values), (True, np.maximum(values, 0)), (True, values + 2)):
        coding = ranges.coding(blob(array), rule, shiftable=shiftable)
        integers = np.clip(coding.sign * np.rint(array * coding.scale) + coding.zero, -127, 127)
        back = coding.sign * (integers - coding.zero) / coding.scale
        assert 10 * np.log10(np.square(array).sum() / np.square(back - array).sum()) > 28, (rule, shiftable)


def test_what_is_never_negative_has_all_the_integers() -> None:
    coding = ranges.coding(blob(RNG.uniform(0, 6, 1000)), "minmax", shiftable=True)
    assert (coding.zero, coding.sign) == (127, -1)
    assert coding.scale == pytest.approx(254 / 6, rel=0.01)


def test_an_outlier_does_not_set_the_range_of_a_percentile() -> None:
    values = np.append(RNG.uniform(-1, 1, 99_999), 1000.0)
    assert ranges.coding(blob(values), "percentile", shiftable=False).scale > 60


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_infinite_and_nan_activations_are_refused_with_the_blobs_name(bad: float) -> None:
    with pytest.raises(SystemExit, match="the blob x"):
        blob(np.array([1.0, bad]))


def _quantize(
    line: str, weights: np.ndarray, bias: np.ndarray | None, mean: np.ndarray
) -> tuple[object, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the layer, and weights (as float again), bias and weight factors read back from the bytes."""
    parsed = files._layer(line)
    content = tagged(weights.astype(np.float32)) + (b"" if bias is None else bias.astype(np.float32).tobytes())
    data = np.frombuffer(content, np.uint8)
    blocks = files.locate([parsed], data)[0]
    seen = blob(mean.reshape(len(mean), 1, 1), cuts={plans.channels(parsed)})
    rounded = int8.round_weights(parsed, blocks, data, seen, None, effort="fast", given=None)
    written = int8.write_layer(parsed, rounded, ranges.Coding(2.0), None, chained=False)
    assert written[:4] == files.INT8.to_bytes(4, "little")
    rows = parsed.int(7, 1) if parsed.type == "ConvolutionDepthWise" else parsed.int(0)
    integers = np.frombuffer(written, np.int8, weights.size, 4)
    rest = np.frombuffer(written, np.float32, offset=4 + (weights.size + 3) // 4 * 4)
    outputs = parsed.int(0)
    assert len(rest) == outputs + rows + 1 and rest[-1] == 2.0
    factors = rest[outputs:-1]
    floats = integers.reshape(rows, -1) / factors[:, None]
    return parsed, floats.reshape(weights.shape), rest[:outputs], factors


def test_weights_use_the_whole_int8_range_of_each_channel() -> None:
    weights = RNG.normal(0, 1, (4, 2, 3, 3)) * np.array([1, 10, 0.01, 0]).reshape(4, 1, 1, 1)
    parsed, back, _, factors = _quantize(layer("Convolution", "0=4", "1=3", "6=72"), weights, None, np.zeros(2))
    assert (np.abs(back - weights).max(axis=(1, 2, 3)) <= 0.5001 / factors).all()  # half a step
    assert (factors * np.abs(weights).max(axis=(1, 2, 3)))[:3] == pytest.approx(127, rel=1e-4)
    assert factors[3] == 1.0  # the dead channel
    assert parsed.params["8"] == "2" and parsed.params["5"] == "1"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("line", "shape", "groups"),
    [
        (layer("Convolution", "0=6", "1=3", "5=1", "6=216"), (6, 4, 3, 3), 1),
        (layer("ConvolutionDepthWise", "0=6", "1=3", "5=1", "6=54", "7=6"), (6, 1, 3, 3), 6),
        (layer("ConvolutionDepthWise", "0=6", "1=3", "5=1", "6=108", "7=2"), (6, 2, 3, 3), 2),
        (layer("InnerProduct", "0=6", "1=1", "2=24"), (6, 4), 1),
    ],
)
def test_the_corrected_bias_gives_each_channel_the_mean_it_had(line: str, shape: tuple[int, ...], groups: int) -> None:
    weights, bias = RNG.normal(0, 1, shape), RNG.normal(0, 1, 6)
    inputs = shape[1] * groups
    mean = RNG.normal(3, 2, inputs).astype(np.float32)

    def output(w: np.ndarray, b: np.ndarray) -> np.ndarray:
        per_input = w.reshape(groups, 6 // groups, shape[1], -1).sum(axis=3)
        return np.einsum("goc,gc->go", per_input, mean.reshape(groups, -1)).reshape(-1) + b

    _, back, corrected, _ = _quantize(line, weights, bias, mean)
    assert output(back, corrected) == pytest.approx(output(weights, bias), abs=1e-4)
    assert output(back, bias) != pytest.approx(output(weights, bias), abs=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_broken_weights_are_refused_with_the_layers_name(bad: float) -> None:
    with pytest.raises(SystemExit, match="layer l has infinite or NaN weights"):
        _quantize(layer("InnerProduct", "0=1", "2=4"), np.array([[1, 2, bad, 4]]), None, np.zeros(4))


@pytest.mark.parametrize(("inputs", "masked"), [(16, False), (64, True)])
def test_winograd_is_switched_off_only_where_its_sums_could_overflow(inputs: int, masked: bool) -> None:
    weights = np.ones((8, inputs, 3, 3))
    line = layer("Convolution", "0=8", "1=3", f"6={weights.size}")
    parsed, *_ = _quantize(line, weights, None, np.zeros(inputs))
    assert (parsed.params.get("31") == "64") is masked  # type: ignore[attr-defined]


def plan(text: str, *kept: str) -> Any:
    return plans.Plan(files.read_param("7767517\n0 0\n" + text), set(kept))


def _chain(text: str) -> dict[str, str | None]:
    made = plan(text)
    return {made.layers[i].name: made.chained(i) for i in made.wanted}


CONV = "Convolution {} 1 1 {} {} 0=1 1=1 6=1\n"
INPUT = "Input in0 0 1 in0\n"


def test_a_convolution_hands_on_int8_only_to_convolutions() -> None:
    assert _chain(INPUT + CONV.format("a", "in0", "x") + CONV.format("b", "x", "out0")) == {"a": "x", "b": None}
    relu = "ReLU r 1 1 x y\n"
    assert _chain(INPUT + CONV.format("a", "in0", "x") + relu + CONV.format("b", "y", "out0"))["a"] is None


def test_every_copy_of_a_blob_must_go_to_a_convolution() -> None:
    split = "Split s 1 2 x x1 x2\n"
    start = INPUT + CONV.format("a", "in0", "x") + split + CONV.format("b", "x1", "out0")
    assert _chain(start + CONV.format("c", "x2", "out1"))["a"] == "x"
    assert _chain(start + "ReLU r 1 1 x2 out1\n")["a"] is None
    assert _chain(start)["a"] is None  # x2 is an output of the model


def test_only_what_quantized_layers_alone_read_has_a_zero_point() -> None:
    chain = CONV.format("a", "in0", "x") + CONV.format("b", "x", "out0")
    assert plan(INPUT + chain).shiftable("x")
    assert not plan(INPUT + chain).shiftable("in0")  # its producer has no bias to shift
    assert plan(INPUT + chain, "a").shiftable("x")  # a float layer can shift too
    assert not plan(INPUT + chain, "b").wanted.keys() & {2}
    assert not plan(INPUT + chain + "ReLU r 1 1 x y\n").shiftable("x")
    hard_swish = "Convolution a 1 1 in0 x 0=1 1=1 6=1 9=6\n"
    assert not plan(INPUT + hard_swish + CONV.format("b", "x", "out0")).shiftable("x")
    padded = "Convolution b 1 1 x out0 0=1 1=3 4=1 6=9 18=1.5\n"
    assert not plan(INPUT + CONV.format("a", "in0", "x") + padded).shiftable("x")


def test_what_no_producer_can_shift_is_shifted_by_a_layer_of_its_own() -> None:
    swish = "HardSwish h 1 1 in0 x\n"
    made = plan(INPUT + swish + CONV.format("a", "x", "y") + CONV.format("b", "y", "out0"))
    assert made.liftable("x") and not made.liftable("y")
    fused = "Convolution a 1 1 in0 x 0=1 1=1 6=1 9=6\n"
    assert not plan(INPUT + fused + CONV.format("b", "x", "out0")).liftable("x")  # it is handed on as int8
    for low, high in ((0.0, 4.0), (-1.0, 3.0), (-3.0, 1.0)):
        coding = ranges.affine(low, high)
        reader = files._layer(CONV.format("a", "x", "y"))
        layer = int8.shift_before(reader, coding)
        assert reader.bottoms == layer.tops and layer.bottoms == ["x"]
        given = float(layer.params["2"])
        for value in (low, 0.0, high):
            shifted = {0: value + given, 7: given - value}[layer.int(0)]  # what ncnn's BinaryOp does
            assert round(shifted * coding.scale) == round(coding.sign * value * coding.scale) + coding.zero


@pytest.mark.parametrize(
    ("line", "shape", "positions"),
    [
        (layer("Convolution", "0=4", "1=3", "2=2", "3=2", "4=1", "6=108"), (3, 9, 7), 12),
        (layer("Convolution", "0=4", "1=3", "11=1", "4=1", "14=0", "6=36"), (3, 5, 6), 30),
        (layer("ConvolutionDepthWise", "0=4", "1=3", "4=-233", "6=36", "7=4"), (4, 5, 5), 25),
        (layer("ConvolutionDepthWise", "0=4", "1=2", "6=32", "7=2"), (4, 5, 5), 16),
        (layer("InnerProduct", "0=4", "2=24"), (6,), 1),
        (layer("InnerProduct", "0=4", "2=24"), (5, 6), 5),
    ],
)
def test_patches_times_weights_are_what_the_layer_computes(line: str, shape: tuple[int, ...], positions: int) -> None:
    parsed = files._layer(line)
    values = RNG.normal(0, 1, shape).astype(np.float32)
    found = watching.patches(parsed, values, 0)
    groups = plans.groups(parsed)
    inputs = plans.channels(parsed) // groups * plans.points(parsed)
    assert found.shape == (groups, positions, inputs)
    assert plans.products(parsed, shape) == positions * parsed.int(2 if parsed.type == "InnerProduct" else 6)
    if parsed.type != "InnerProduct" and parsed.int(4) >= 0:
        x, y = (shape[2] + 2 * parsed.int(4)) // 2, positions // 2
        assert x and y
        padded = np.pad(values, ((0, 0), (parsed.int(14, parsed.int(4)),) * 2, (parsed.int(4),) * 2))
        kernel = parsed.int(11, parsed.int(1)), parsed.int(1)
        first = padded[
            :, : kernel[0] * parsed.int(2, 1) : parsed.int(2, 1), : kernel[1] * parsed.int(2, 1) : parsed.int(2, 1)
        ]
        assert (found[:, 0] == first.reshape(groups, -1)).all()


def test_moments_are_those_of_all_samples_at_once() -> None:
    data = RNG.normal(1, 2, (1, 500, 6)).astype(np.float32)
    seen = watching.Moments(1, 6)
    for part in np.split(data, 5, axis=1):
        seen.add(part)
    assert seen.mean() == pytest.approx(data.mean(axis=1), abs=1e-5)
    wanted = np.cov(data[0].T, bias=True)
    trust = 500 / (500 + watching.SHRINK * 6)
    assert np.diag(seen.covariance()[0]) == pytest.approx(np.diag(wanted), rel=1e-4)
    assert seen.covariance()[0, 0, 1] == pytest.approx(trust * wanted[0, 1], abs=1e-4)


def test_float16_is_refused_for_weights_that_it_would_flush_or_overflow() -> None:
    assert halving.fits_half(RNG.normal(0, 0.1, 1000).astype(np.float32))
    assert halving.fits_half(np.array([1.0, 1e-9, 0.0], np.float32))
    assert not halving.fits_half(RNG.normal(0, 1e-5, 1000).astype(np.float32))
    assert not halving.fits_half(np.array([70000.0], np.float32))
    assert halving.fits_half(np.zeros(3, np.float32))


def test_halving_keeps_a_layer_that_does_not_fit_out_of_float16_arithmetic() -> None:
    lines = layer("InnerProduct", "0=1", "2=3"), layer("InnerProduct", "0=1", "2=3")
    layers = files.read_param("7767517\n2 2\n" + "\n".join(lines))
    good, bad = np.array([1, 2, 3], np.float32), np.array([1, 2, 3], np.float32) * 1e-6
    data = np.frombuffer(tagged(good) + tagged(bad), np.uint8)
    file = BytesIO()
    assert halving.halve({}, layers, files.locate(layers, data), data, file) == {"float32": ["l"]}
    assert file.getvalue() == tagged(good.astype(np.float16), files.HALF) + tagged(bad)
    assert [parsed.params.get("31") for parsed in layers] == [None, None, "3"]


def test_a_layer_kept_in_float32_gets_its_inputs_through_a_layer_that_ncnn_casts_for() -> None:
    line = layer("InnerProduct", "0=1", "2=3")
    layers = files.read_param("7767517\n1 1\n" + line)
    before = list(layers[-1].bottoms)
    data = np.frombuffer(tagged(np.array([1, 2, 3], np.float32) * 1e-6), np.uint8)
    halving.halve({}, layers, files.locate(layers, data), data, BytesIO())
    cast, kept = layers[-2], layers[-1]
    assert (cast.type, cast.bottoms, cast.params) == ("Dropout", before, {})
    assert kept.bottoms == cast.tops and kept.bottoms != before


def test_a_bias_too_small_for_float16_does_not_keep_its_layer_in_float32() -> None:
    layers = files.read_param("7767517\n1 1\n" + layer("Gemm", "5=1", "6=1", "8=2", "9=4", "10=4"))
    weights, bias = np.arange(8, dtype=np.float32), np.full(2, 1e-9, np.float32)
    data = np.frombuffer(tagged(weights) + tagged(bias), np.uint8)
    file = BytesIO()
    assert halving.halve({}, layers, files.locate(layers, data), data, file) == {"float32": []}
    assert file.getvalue() == tagged(weights.astype(np.float16), files.HALF) + tagged(bias)


def test_attention_gets_the_factors_that_ncnn_reads() -> None:
    parsed = files._layer(layer("MultiHeadAttention", "0=4", "1=2", "2=16"))
    arrays = [RNG.normal(0, 1, 16).astype(np.float32) if i % 2 == 0 else np.zeros(4, np.float32) for i in range(8)]
    data = np.frombuffer(b"".join(tagged(a) if i % 2 == 0 else a.tobytes() for i, a in enumerate(arrays)), np.uint8)
    ((_, written),) = running.write_attention(parsed, files.locate([parsed], data)[0], data)
    assert len(written) == 4 * (4 + 16 + 4 * 4) + 4 * (4 + 4 + 4 + 1)
    factors = np.frombuffer(written[-52:], np.float32)
    assert factors[:4] == pytest.approx(127 / np.abs(arrays[0].reshape(4, 4)).max(axis=1))
    assert factors[12] == pytest.approx(127 / np.abs(arrays[6]).max())
    assert parsed.params["18"] == "2"


@pytest.mark.parametrize("by_rows", [False, True])
def test_each_column_of_a_product_uses_the_whole_int8_range_and_comes_back(by_rows: bool) -> None:
    matrix = RNG.normal(0, 1, (3, 8)).astype(np.float32) * np.array([[1.0], [0.1], [1e-9]], np.float32)
    gemm = files._layer(layer("Gemm", "5=1", "6=1", "8=3", "9=8", "10=4", f"3={int(by_rows)}"))
    addend = np.array([1.0, 2.0, 3.0], np.float32)
    data = np.frombuffer(tagged(matrix if by_rows else matrix.T.copy()) + tagged(addend), np.uint8)
    (_, written), (memory, gains), (product, none) = running.write_gemm(gemm, files.locate([gemm], data)[0], data)
    stored = np.frombuffer(written, np.int8, 24, 4).reshape(3, 8) if by_rows else None
    if stored is None:
        stored = np.frombuffer(written, np.int8, 24, 4).reshape(8, 3).T
    factor, gain = np.frombuffer(written[-4:], np.float32)[0], np.frombuffer(gains, np.float32)
    assert np.abs(stored[:2]).max(axis=1).tolist() == [127, 127]
    assert np.abs(stored / factor * gain[:, None] - matrix).max(axis=1) == pytest.approx(0, abs=0.02)
    assert np.frombuffer(written[32:44], np.float32) * gain == pytest.approx(addend)
    assert gain.min() >= 1 / 64 and gain.max() == 1.0
    assert memory.params == {"0": "3", "1": "1"} and product.bottoms == [gemm.tops[0], memory.tops[0]] and none == b""


def test_a_product_that_adds_something_else_than_a_row_keeps_one_factor() -> None:
    gemm = files._layer(layer("Gemm", "5=1", "6=1", "7=4", "8=2", "9=4", "10=3"))
    data = np.frombuffer(tagged(np.arange(8, dtype=np.float32)) + tagged(np.ones(8, np.float32)), np.uint8)
    ((_, written),) = running.write_gemm(gemm, files.locate([gemm], data)[0], data)
    assert written == files.tagged(np.rint(np.arange(8) * 127 / 7).astype(np.int8).tobytes(), files.INT8) + tagged(
        np.ones(8, np.float32)
    ) + files.raw(127 / 7)


def test_a_table_of_rows_has_a_factor_per_column() -> None:
    table = (RNG.normal(0, 1, (50, 4)) * [1.0, 0.2, 0.05, 0.5]).astype(np.float32)
    embed = files._layer(layer("Embed", "0=4", "1=50", "2=0", "3=200"))
    data = np.frombuffer(tagged(table), np.uint8)
    (_, written), (_, gains), _ = running.write_embed(embed, files.locate([embed], data)[0], data)
    integers = np.frombuffer(written, np.int8, 200, 4).reshape(50, 4)
    back = integers / np.frombuffer(written[-4:], np.float32) * np.frombuffer(gains, np.float32)
    assert (np.abs(back - table).max(axis=0) < np.abs(table).max(axis=0) / 200).all()
    assert np.abs(integers).max(axis=0).tolist() == [127] * 4
