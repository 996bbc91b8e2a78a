"""Raw camera frames as RGB, checked against the standards' formulas and plain scalar code."""

import numpy as np
import pytest

from edgepack import frames
from edgepack.errors import CalibrationError


def noise(size: int, seed: int = 0) -> bytes:
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8).tobytes()


def rgb(data: bytes, format: str, width: int, height: int, **how: bool) -> np.ndarray:
    return frames.to_rgb(frames.split(data, format, width, height), format, width, height, **how)


def test_packed_formats_give_their_bytes_in_order() -> None:
    for name, expected in [("rgb", [1, 2, 3]), ("bgr", [3, 2, 1]), ("rgba", [1, 2, 3]), ("bgra", [3, 2, 1])]:
        assert rgb(bytes([1, 2, 3, 9])[: frames.PACKED[name][0]], name, 1, 1).tolist() == [[expected]]
    assert rgb(b"\x07", "gray", 1, 1).tolist() == [[[7, 7, 7]]]


@pytest.mark.parametrize(("bt709", "full_range"), list(frames.MATRIX))
def test_the_integer_matrix_is_the_standard_s_within_one_step(bt709: bool, full_range: bool) -> None:
    red, blue = (0.2126, 0.0722) if bt709 else (0.299, 0.114)
    green = 1 - red - blue
    data = np.frombuffer(noise(4 * 4000), np.uint8)
    y, u, v = (data[at::4].astype(float) for at in (0, 1, 3))
    y, u, v = (y / 255, (u - 128) / 255, (v - 128) / 255) if full_range else (
        (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    )  # fmt: skip
    exact_red, exact_blue = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    exact = np.stack([exact_red, (y - red * exact_red - blue * exact_blue) / green, exact_blue], axis=-1)

    found = rgb(data.tobytes(), "yuyv", 8000, 1, bt709=bt709, full_range=full_range)[0, 0::2]

    assert np.abs(found - np.clip(exact * 255, 0, 255)).max() < 0.55


def test_limited_range_reaches_black_and_white() -> None:
    for bt709 in (False, True):
        assert rgb(bytes([16, 128, 235, 128]), "yuyv", 2, 1, bt709=bt709).tolist() == [[[0] * 3, [255] * 3]]


def test_every_yuv_format_finds_its_samples() -> None:
    """The same picture in five layouts: 4x2 pixels, two chroma samples."""
    y, u, v = [[10, 60, 110, 160], [30, 80, 130, 180]], [90, 200], [240, 20]
    flat = [each for row in y for each in row]
    nv12, nv21 = [*flat, u[0], v[0], u[1], v[1]], [*flat, v[0], u[0], v[1], u[1]]
    yuyv = [part for row in y for x in (0, 2) for part in (row[x], u[x // 2], row[x + 1], v[x // 2])]
    uyvy = [part for row in y for x in (0, 2) for part in (u[x // 2], row[x], v[x // 2], row[x + 1])]
    first = rgb(bytes(nv12), "nv12", 4, 2)

    for name, data in [("nv21", nv21), ("i420", [*flat, *u, *v]), ("yuyv", yuyv), ("uyvy", uyvy)]:
        np.testing.assert_array_equal(rgb(bytes(data), name, 4, 2), first, err_msg=name)
    assert first[0, 0].tolist() == rgb(bytes([10, 90, 10, 240]), "yuyv", 2, 1)[0, 0].tolist()


def test_bytes_between_rows_are_ignored() -> None:
    for name in frames.FORMATS:
        sizes = frames.plane_sizes(name, 4, 2)
        tight = noise(sum(rows * size for rows, size in sizes))
        planes = frames.split(tight, name, 4, 2)
        wide = [np.pad(plane, ((0, 0), (0, 3)), constant_values=99) for plane in planes]

        np.testing.assert_array_equal(frames.to_rgb(wide, name, 4, 2), frames.to_rgb(planes, name, 4, 2), err_msg=name)


def test_a_stride_applies_to_every_plane_and_halves_for_i420_chroma() -> None:
    assert [plane.shape for plane in frames.split(noise(8 * 2 + 4 + 4), "i420", 4, 2, 8)] == [(2, 8), (1, 4), (1, 4)]
    assert [plane.shape for plane in frames.split(noise(8 * 3), "nv12", 4, 2, 8)] == [(2, 8), (1, 8)]


@pytest.mark.parametrize(
    ("format", "width", "height", "size", "stride", "expected"),
    [
        ("nv12", 3, 2, 9, None, "2x2 pixels, so its width and height must be even, not 3x2"),
        ("i420", 2, 1, 3, None, "width and height must be even"),
        ("yuyv", 3, 1, 6, None, "1x2 pixels, so its width must be even, not 3x1"),
        ("jpeg", 2, 2, 9, None, "'jpeg' is unknown"),
        ("rgb", 2, 2, 11, None, "can't have 11 bytes"),
        ("rgb", 2, 2, 13, None, "has 13 bytes, 12 were expected"),
        ("rgb", 2, 2, 10, 5, "can't have 10 bytes"),
        ("nv12", 2, 2, 4, None, "can't have 4 bytes"),
    ],
)
def test_a_frame_that_can_not_be_is_refused(
    format: str, width: int, height: int, size: int, stride: int | None, expected: str
) -> None:
    with pytest.raises(CalibrationError) as caught:
        frames.split(noise(size), format, width, height, stride)

    assert expected in caught.value.message and caught.value.hint
