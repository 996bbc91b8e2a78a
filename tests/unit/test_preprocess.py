"""The declared input transform: exact rules, checked against plain scalar code written from the same words."""

import io
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edgepack import preprocess
from edgepack.errors import CalibrationError
from edgepack.types import Preprocess


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def plain_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The documented rule, pixel by pixel, in float64."""
    out = np.zeros((height, width, image.shape[2]))
    for y in range(height):
        at_y = min(max((y + 0.5) * (image.shape[0] / height) - 0.5, 0.0), image.shape[0] - 1.0)
        top = math.floor(at_y)
        for x in range(width):
            at_x = min(max((x + 0.5) * (image.shape[1] / width) - 0.5, 0.0), image.shape[1] - 1.0)
            left = math.floor(at_x)
            right, bottom = min(left + 1, image.shape[1] - 1), min(top + 1, image.shape[0] - 1)
            rows = [
                image[row, left] + (image[row, right].astype(float) - image[row, left]) * (at_x - left)
                for row in (top, bottom)
            ]
            out[y, x] = rows[0] + (rows[1] - rows[0]) * (at_y - top)
    return out


sizes = st.integers(1, 40)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, sizes)
def test_bilinear_is_the_documented_rule_at_every_size(tall: int, wide: int, height: int, width: int) -> None:
    image = picture(tall, wide, seed=tall * 41 + wide)
    how = Preprocess(layout="HWC", resize=(height, width))

    found = preprocess.apply(image, how, (height, width, 3), "float32")

    np.testing.assert_allclose(found, plain_bilinear(image, height, width), atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(sizes, sizes, sizes, sizes)
def test_nearest_is_the_documented_rule_at_every_size(tall: int, wide: int, height: int, width: int) -> None:
    image = picture(tall, wide, seed=tall * 41 + wide)
    how = Preprocess(layout="HWC", resize=(height, width), method="nearest")

    found = preprocess.apply(image, how, (height, width, 3), "uint8")

    rows = [(2 * y + 1) * tall // (2 * height) for y in range(height)]
    columns = [(2 * x + 1) * wide // (2 * width) for x in range(width)]
    np.testing.assert_array_equal(found, image[np.ix_(rows, columns)])


def test_doubling_a_row_of_two_pixels_shows_half_pixel_centres() -> None:
    image = np.array([[[0] * 3, [100] * 3]], dtype=np.uint8)
    how = Preprocess(layout="HWC", resize=(1, 4))

    assert preprocess.apply(image, how, (1, 4, 3), "float32")[0, :, 0].tolist() == [0, 25, 75, 100]


def test_bilinear_equals_a_public_resizer_when_enlarging() -> None:
    """Pillow uses the same centres; it only differs when shrinking, where it averages."""
    image = picture(13, 17)
    how = Preprocess(layout="HWC", resize=(29, 41))

    theirs = np.asarray(Image.fromarray(image).resize((41, 29), Image.Resampling.BILINEAR))
    ours = preprocess.apply(image, how, (29, 41, 3), "uint8")

    assert np.abs(ours.astype(int) - theirs).max() <= 1


def test_one_number_resizes_the_shorter_side_and_rounds_the_longer_down() -> None:
    assert preprocess.resized_size(100, 301, 50) == (50, 150)
    assert preprocess.resized_size(301, 100, 50) == (150, 50)
    assert preprocess.resized_size(7, 9, None) == (7, 9)


def test_the_crop_is_central_and_its_corner_is_rounded_down() -> None:
    image = picture(7, 10)
    how = Preprocess(layout="HWC", crop=(4, 5))

    np.testing.assert_array_equal(preprocess.apply(image, how, (4, 5, 3), "uint8"), image[1:5, 2:7])


@settings(max_examples=30, deadline=None)
@given(st.integers(5, 40), st.integers(5, 40), st.integers(5, 30), st.sampled_from(["bilinear", "nearest"]))
def test_cropping_while_resizing_equals_cropping_afterwards(tall: int, wide: int, short: int, method: str) -> None:
    image = picture(tall, wide)
    height, width = preprocess.resized_size(tall, wide, short)
    whole = preprocess.apply(
        image, Preprocess(layout="HWC", resize=short, method=method), (height, width, 3), "float32"
    )
    cut = preprocess.apply(
        image, Preprocess(layout="HWC", resize=short, method=method, crop=(5, 5)), (5, 5, 3), "float32"
    )

    top, left = (height - 5) // 2, (width - 5) // 2
    np.testing.assert_array_equal(cut, whole[top : top + 5, left : left + 5])


def test_mean_and_std_are_per_channel_on_the_0_to_255_scale_in_the_declared_colour_order() -> None:
    image = np.array([[[10, 20, 30]]], dtype=np.uint8)
    how = Preprocess(layout="NCHW", color="BGR", mean=(30.0, 10.0, 0.0), std=(1.0, 2.0, 4.0))

    found = preprocess.apply(image, how, (1, 3, 1, 1), "float32")

    assert found.ravel().tolist() == [0.0, 5.0, 2.5]


def test_gray_is_bt_601() -> None:
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]], dtype=np.uint8)
    how = Preprocess(layout="HW", color="GRAY")

    found = preprocess.apply(image, how, (1, 4), "float32")

    np.testing.assert_allclose(found[0], [76.245, 149.685, 29.07, 255.0], atol=1e-4)


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        ("NCHW", (1, 3, 4, 5)), ("NHWC", (1, 4, 5, 3)), ("CHW", (3, 4, 5)), ("HWC", (4, 5, 3)),
        ("NCHW", (3, 4, 5)), ("CHW", (1, 3, 4, 5)),
    ],
)  # fmt: skip
def test_every_layout_holds_the_same_pixels(layout: str, shape: tuple[int, ...]) -> None:
    image = picture(4, 5)

    found = preprocess.apply(image, Preprocess(layout=layout), shape, "uint8")

    channels_last = np.moveaxis(found.reshape(shape[-3:]), 0, -1) if "CHW" in layout else found.reshape(4, 5, 3)
    assert found.shape == shape and found.flags.c_contiguous
    np.testing.assert_array_equal(channels_last, image)


@pytest.mark.parametrize(
    ("dtype", "std", "expected"),
    [("uint8", 2.0, [0, 0, 2, 128]), ("int8", 1.0, [0, 1, 3, 127]), ("int32", 2.0, [0, 0, 2, 128])],
)
def test_whole_numbers_are_rounded_half_to_even_and_saturated(dtype: str, std: float, expected: list[int]) -> None:
    image = np.array([[[0] * 3, [1] * 3, [3] * 3, [255] * 3]], dtype=np.uint8)

    found = preprocess.apply(image, Preprocess(layout="HWC", std=(std,)), (1, 4, 3), dtype)

    assert found.dtype == dtype and found[0, :, 0].tolist() == expected


def test_float16_inputs_are_made() -> None:
    assert preprocess.apply(picture(2, 2), Preprocess(), (1, 3, 2, 2), "float16").dtype == np.float16


@pytest.mark.parametrize(
    ("how", "shape", "message", "hint"),
    [
        (Preprocess(), (1, 3, 224, 224), "gives 10x20 pixels with 3 channels, which as NCHW is [1, 3, 10, 20]",
         "resize = [224, 224]"),
        (Preprocess(resize=(224, 224)), (1, 224, 224, 3), "the model's input is [1, 224, 224, 3]", "layout = 'NHWC'"),
        (Preprocess(resize=(9, 9)), (1, 1, 9, 9), "3 channels", "color = 'GRAY'"),
        (Preprocess(resize=(9, 9), color="GRAY"), (1, 3, 9, 9), "1 channel, which", "color = 'RGB'"),
        (Preprocess(resize=(9, 9)), (1, 16, 9, 9), "3 channels", "takes no photographs"),
        (Preprocess(crop=(11, 5)), (1, 3, 11, 5), "crop [11, 5] is larger than the image, which is [10, 20]", "resize"),
        (Preprocess(), (1, 128), "layout NCHW has 4 axes, but the model's input is [1, 128]", "2 letters"),
        (Preprocess(), (4, 3, 10, 20), "wants 4 at once", "batch 1"),
        (Preprocess(layout="HW"), (10, 20), "no channel axis", "GRAY"),
        (Preprocess(mean=(1.0, 2.0)), (1, 3, 10, 20), "mean has 2 values, but color RGB has 3 channels", "or 3"),
    ],
)  # fmt: skip
def test_a_declaration_that_does_not_lead_to_the_input_says_what_to_change(
    how: Preprocess, shape: tuple[int, ...], message: str, hint: str
) -> None:
    with pytest.raises(CalibrationError) as caught:
        preprocess.apply(picture(10, 20), how, shape, "float32")

    assert message in caught.value.message and hint in caught.value.hint


def test_a_bool_input_takes_no_picture() -> None:
    with pytest.raises(CalibrationError, match="bool"):
        preprocess.apply(picture(2, 2), Preprocess(), (1, 3, 2, 2), "bool")


@pytest.mark.parametrize(
    "image", [np.zeros((2, 2, 3), np.float32), np.zeros((2, 2), np.uint8), np.zeros((0, 2, 3), np.uint8)]
)
def test_what_is_no_rgb_picture_is_refused(image: np.ndarray) -> None:
    with pytest.raises(CalibrationError, match="not uint8"):
        preprocess.apply(image, Preprocess(), (1, 3, 2, 2), "float32")


@pytest.mark.parametrize(
    ("fit", "resize", "size", "expected"),
    [
        ("stretch", (640, 640), (1080, 1920), (640, 640)),
        ("inside", (640, 640), (1080, 1920), (360, 640)),
        ("inside", (640, 640), (1920, 1080), (640, 360)),
        ("inside", (640, 640), (240, 320), (480, 640)),
        ("inside", (640, 640), (721, 1280), (360, 640)),  # 360.5
        ("inside", (640, 640), (723, 1280), (362, 640)),  # 361.5
        ("inside", (640, 640), (1, 9000), (1, 640)),
        ("height", (48, 320), (100, 201), (48, 97)),  # 96.48
        ("height", (48, 320), (10, 2000), (48, 320)),
    ],
)
def test_fit_says_how_the_size_is_reached(
    fit: str, resize: tuple[int, int], size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert preprocess.resized_size(*size, resize, fit) == expected


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 1000), st.integers(1, 1000))
def test_inside_is_the_size_of_the_usual_letterbox_code(height: int, width: int, tall: int, wide: int) -> None:
    """r = min(H / h, W / w); round(h * r), round(w * r), in exact fractions."""
    ratio = min(Fraction(tall, height), Fraction(wide, width))

    expected = (max(1, round(height * ratio)), max(1, round(width * ratio)))
    assert preprocess.resized_size(height, width, (tall, wide), "inside") == expected


def test_a_letterbox_is_the_usual_one() -> None:
    """Padding is split as the usual code does it: round(half - 0.1) before, round(half + 0.1) behind."""
    image = picture(5, 9)
    how = Preprocess(layout="HWC", resize=(18, 18), fit="inside", pad=(18, 18), pad_value=(114.0,))

    found = preprocess.apply(image, how, (18, 18, 3), "float32")

    before, behind = round((18 - 10) / 2 - 0.1), round((18 - 10) / 2 + 0.1)
    inner = preprocess.apply(image, Preprocess(layout="HWC", resize=(10, 18)), (10, 18, 3), "float32")
    expected = np.pad(inner, ((before, behind), (0, 0), (0, 0)), constant_values=114)
    np.testing.assert_array_equal(found, expected)


def test_an_odd_rest_of_padding_goes_behind_the_picture() -> None:
    how = Preprocess(layout="HW", color="GRAY", pad=(4, 5), pad_value=(7.0,))

    found = preprocess.apply(np.full((1, 2, 3), 255, np.uint8), how, (4, 5), "float32")

    assert np.argwhere(found > 7).tolist() == [[1, 1], [1, 2]]


def test_padding_is_a_colour_in_the_declared_order_and_goes_through_mean_and_std() -> None:
    image = np.array([[[10, 20, 30]]], dtype=np.uint8)
    how = Preprocess(
        layout="HWC", color="BGR", pad=(1, 2), pad_place="top_left", pad_value=(50.0, 60.0, 70.0),
        mean=(30.0, 20.0, 10.0), std=(1.0, 2.0, 4.0),
    )  # fmt: skip

    found = preprocess.apply(image, how, (1, 2, 3), "float32")

    assert found.tolist() == [[[0.0, 0.0, 0.0], [20.0, 20.0, 15.0]]]


def test_a_line_of_text_keeps_its_shape_and_its_rest_is_zero() -> None:
    """As text recognizers want it: height 48, the width follows, zeros to the right after normalization."""
    how = Preprocess(
        layout="CHW", color="BGR", resize=(48, 320), fit="height", pad=(48, 320), pad_place="top_left",
        pad_value=(127.5,), mean=(127.5,), std=(127.5,),
    )  # fmt: skip

    found = preprocess.apply(picture(24, 101), how, (3, 48, 320), "float32")

    assert not found[:, :, 202:].any() and found[:, :, :202].any(axis=(0, 1)).all()


def test_a_pad_that_is_too_small_says_what_to_change() -> None:
    with pytest.raises(
        CalibrationError, match=r"pad \[8, 30\] is smaller than the image, which is \[10, 20\]"
    ) as caught:
        preprocess.apply(picture(10, 20), Preprocess(pad=(8, 30)), (1, 3, 8, 30), "float32")
    assert 'fit = "inside"' in caught.value.hint


def test_the_range_of_a_declaration() -> None:
    assert preprocess.value_range(Preprocess(mean=(127.5,), std=(127.5,))) == (-1.0, 1.0)
    assert preprocess.value_range(Preprocess(std=(-255.0, 255.0, 1.0))) == (-1.0, 255.0)


# --- files ----------------------------------------------------------------------------------------------------------


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def test_pictures_of_all_modes_become_rgb(tmp_path: Path) -> None:
    color = Image.fromarray(picture(3, 4))
    for mode in ("RGB", "RGBA", "L", "LA", "P", "1"):
        loaded = preprocess.load_image(saved(tmp_path / f"{mode}.png", color.convert(mode)))
        assert loaded.shape == (3, 4, 3) and loaded.dtype == np.uint8
    np.testing.assert_array_equal(preprocess.load_image(tmp_path / "RGBA.png"), picture(3, 4))
    cmyk = preprocess.load_image(saved(tmp_path / "cmyk.jpg", color.convert("CMYK")))
    assert cmyk.shape == (3, 4, 3)


def test_sixteen_bit_gray_is_scaled_and_not_cut_off(tmp_path: Path) -> None:
    deep = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)

    loaded = preprocess.load_image(saved(tmp_path / "deep.png", Image.fromarray(deep)))

    assert loaded[0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_rotated_photograph_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned a quarter to the right
    path = saved(tmp_path / "turned.png", Image.fromarray(picture(2, 5)), exif=exif)

    np.testing.assert_array_equal(preprocess.load_image(path), np.rot90(picture(2, 5), -1))


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n garbage"])
def test_an_unreadable_picture_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)

    with pytest.raises(CalibrationError, match=r"broken\.png can't be decoded") as caught:
        preprocess.load_image(path)
    assert caught.value.hint


def test_a_truncated_picture_is_refused_and_not_filled_with_gray(tmp_path: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(picture(64, 64)).save(stream, "JPEG")
    path = tmp_path / "half.jpg"
    path.write_bytes(stream.getvalue()[: stream.tell() // 2])

    with pytest.raises(CalibrationError, match=r"half\.jpg can't be decoded"):
        preprocess.load_image(path)


def test_postscript_named_like_a_picture_never_reaches_ghostscript(tmp_path: Path) -> None:
    path = tmp_path / "evil.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) run\n")

    with pytest.raises(CalibrationError, match="can't be decoded"):
        preprocess.load_image(path)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_a_picture_of_absurd_size_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 100)

    with pytest.raises(CalibrationError, match="million pixels"):
        preprocess.load_image(saved(tmp_path / "huge.png", Image.fromarray(picture(11, 11))))
