"""Raw camera frames in numpy: what the C++ runtime accepts in edgepack_set_image, as RGB. The reference for its tests.

Every rule is in whole numbers, so both sides agree to the bit:

- packed formats give their bytes; alpha is dropped; gray is repeated for R, G and B;
- NV12, NV21 and I420 have one chroma sample for 2x2 pixels, YUYV and UYVY one for two pixels of a row. It is repeated
  for them (pixel ``x`` takes sample ``x // 2``), not interpolated;
- with ``y = Y - 16`` (limited range) or ``Y`` (full range), ``u = U - 128``, ``v = V - 128`` and `MATRIX`:
  ``R = (yy y + rv v + 4096) >> 13``, ``G = (yy y - gu u - gv v + 4096) >> 13``, ``B = (yy y + bu u + 4096) >> 13``,
  each clamped to 0..255.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from edgepack.errors import CalibrationError

Image = npt.NDArray[np.uint8]

PACKED = {"rgb": (3, (0, 1, 2)), "bgr": (3, (2, 1, 0)), "rgba": (4, (0, 1, 2)), "bgra": (4, (2, 1, 0)),
          "gray": (1, (0, 0, 0))}  # fmt: skip
YUV = ("nv12", "nv21", "i420", "yuyv", "uyvy")
FORMATS = (*PACKED, *YUV)


class Matrix(NamedTuple):
    """YUV to RGB, times 2 ** 13, rounded."""

    yy: int
    rv: int
    gu: int
    gv: int
    bu: int


# By (bt709, full_range). The standards' Kr, Kb are 0.299, 0.114 (ITU-R BT.601) and 0.2126, 0.0722 (BT.709).
MATRIX = {
    (False, False): Matrix(9539, 13075, 3209, 6660, 16525),
    (False, True): Matrix(8192, 11485, 2819, 5850, 14516),
    (True, False): Matrix(9539, 14686, 1747, 4366, 17305),
    (True, True): Matrix(8192, 12901, 1535, 3835, 15201),
}


def plane_sizes(format: str, width: int, height: int) -> list[tuple[int, int]]:
    """(rows, bytes a row) of each plane. Raises `CalibrationError` for an unknown format and an odd size."""
    if format in PACKED:
        return [(height, PACKED[format][0] * width)]
    if format not in YUV:
        raise CalibrationError(f"The pixel format {format!r} is unknown.", f"One of {', '.join(FORMATS)}.")
    tall = 2 if format in ("nv12", "nv21", "i420") else 1
    if width % 2 or height % tall:
        even = "width and height" if tall == 2 else "width"
        raise CalibrationError(
            f"{format} has one chroma sample for {tall}x2 pixels, so its {even} must be even, not {width}x{height}.",
            "Cut off the last column or row.",
        )
    if tall == 1:
        return [(height, 2 * width)]
    chroma = (height // 2, width // 2)
    return [(height, width), chroma, chroma] if format == "i420" else [(height, width), (height // 2, width)]


def split(data: bytes, format: str, width: int, height: int, stride: int | None = None) -> list[Image]:
    """The planes [rows, stride] of a frame in one piece, one plane after another; of I420's chroma the stride is half.

    `stride` is that of the first plane in bytes. Raises `CalibrationError` when `data` has another length.
    """
    planes, at = [], 0
    for index, (rows, row_bytes) in enumerate(plane_sizes(format, width, height)):
        step = row_bytes if stride is None else stride // 2 if format == "i420" and index else stride
        plane = np.frombuffer(data, np.uint8, min(rows * step, max(0, len(data) - at)), at)
        if step < row_bytes or plane.size != rows * step:
            raise CalibrationError(
                f"A {format} frame of {width}x{height} with stride {stride} can't have {len(data)} bytes.",
                "Check the size, the format and the stride in bytes.",
            )
        planes.append(plane.reshape(rows, step))
        at += rows * step
    if at != len(data):
        raise CalibrationError(f"The frame has {len(data)} bytes, {at} were expected.", "Check the size and format.")
    return planes


def to_rgb(
    planes: Sequence[Image], format: str, width: int, height: int, *, bt709: bool = False, full_range: bool = False
) -> Image:
    """One frame as uint8 [height, width, 3]. `planes` are uint8 [rows, stride]; bytes beyond a row's end are ignored.

    The default, BT.601 in limited range, is what cameras deliver under V4L2 unless they say otherwise.
    """
    parts = [
        plane[:rows, :size] for plane, (rows, size) in zip(planes, plane_sizes(format, width, height), strict=True)
    ]
    if format in PACKED:
        step, order = PACKED[format]
        return np.ascontiguousarray(parts[0].reshape(height, width, step)[..., order])
    y, u, v = (part.astype(np.int32) for part in _components(parts, format, width, height))
    matrix = MATRIX[bt709, full_range]
    light = matrix.yy * (y if full_range else y - 16) + 4096
    u, v = u - 128, v - 128
    rgb = [light + matrix.rv * v, light - matrix.gu * u - matrix.gv * v, light + matrix.bu * u]
    found: Image = np.clip(np.stack(rgb, axis=-1) >> 13, 0, 255).astype(np.uint8)
    return found


def _components(parts: list[Image], format: str, width: int, height: int) -> tuple[Any, Any, Any]:
    """Y, U and V for every pixel, [height, width] each."""
    if format in ("yuyv", "uyvy"):
        pairs = parts[0].reshape(height, width // 2, 4)
        at = (0, 1, 3) if format == "yuyv" else (1, 0, 2)
        y = pairs[..., (at[0], at[0] + 2)].reshape(height, width)
        return y, np.repeat(pairs[..., at[1]], 2, axis=1), np.repeat(pairs[..., at[2]], 2, axis=1)
    if format == "i420":
        u, v = parts[1], parts[2]
    else:
        u, v = parts[1][:, 0::2], parts[1][:, 1::2]
    if format == "nv21":
        u, v = v, u
    u, v = (np.repeat(np.repeat(part, 2, axis=0), 2, axis=1) for part in (u, v))
    return parts[0], u, v
