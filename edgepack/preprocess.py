"""The declared input transform in numpy: a photograph becomes one input tensor of the model.

The C++ runtime follows the same declaration, so every rule here is exact and simple enough to be written twice:

1. decode to RGB uint8 (`load_image`);
2. resize with half-pixel centres: output pixel ``i`` reads source place ``(i + 0.5) * (in / out) - 0.5`` (float64),
   clamped to ``0 .. in - 1``, so corners are not aligned and borders repeat. ``bilinear`` takes the two neighbours on
   each axis, ``a + (b - a) * f`` along the width first, then along the height, in float32, without anti-aliasing
   (OpenCV's INTER_LINEAR without its rounding to uint8). ``nearest`` takes pixel ``(2 i + 1) * in // (2 * out)``;
   The size is `resized_size`;
3. centre crop: the first row is ``(height - crop) // 2``, columns likewise;
4. colour order: BGR reverses; GRAY is ITU-R BT.601, ``(0.299 R + 0.587 G) + 0.114 B``;
5. pad with ``pad_value``; in the centre, the picture's first row is ``(pad - height) // 2``, columns likewise;
6. ``(x - mean) / std`` in float32, on the 0..255 scale, padding included;
7. layout, then the input's dtype: integers are rounded half to even and saturated, floats are cast.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgepack.errors import CalibrationError
from edgepack.types import Preprocess

Array = npt.NDArray[Any]
Image = npt.NDArray[np.uint8]
# Pillow picks a reader by content. EPS (which starts Ghostscript) and other odd formats are not offered.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
LARGEST = 100_000_000  # pixels, where Pillow's own limit is switched off
SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


def apply(image: Image, preprocess: Preprocess, shape: tuple[int, ...], dtype: str) -> Array:
    """Turn one uint8 [height, width, 3] RGB image into an array of exactly `shape` and `dtype`.

    Raises `CalibrationError` when the declaration doesn't lead to `shape`.
    """
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise CalibrationError(
            f"An image has dtype {image.dtype} and shape {list(image.shape)}, not uint8 [height, width, 3].",
            "Decode it to RGB, 8 bits a channel.",
        )
    axes = axes_of(preprocess, shape)
    _check_shape(preprocess, axes, _size_after(image, preprocess), shape)
    _check_channels(preprocess)
    pixels = _color(_crop_and_resize(image, preprocess), preprocess)
    normal = _normalize(_pad(pixels, preprocess), preprocess)
    return np.ascontiguousarray(_to_dtype(_lay_out(normal, axes), dtype))


def load_image(path: Path) -> Image:
    """Decode a picture to uint8 [height, width, 3] RGB.

    EXIF rotation is applied, transparency is dropped, 16-bit pictures are scaled to 8 bits, of an animation the first
    frame is taken. Raises `CalibrationError` that names the file.
    """
    from PIL import Image as Pillow
    from PIL import ImageOps

    limit = Pillow.MAX_IMAGE_PIXELS or LARGEST
    try:
        with Pillow.open(path, formats=FORMATS) as opened:
            if opened.width * opened.height > limit:
                raise Pillow.DecompressionBombError
            turned = ImageOps.exif_transpose(opened)
            pixels = np.asarray(_eight_bits(turned).convert("RGB"), dtype=np.uint8)
    except Pillow.DecompressionBombError as error:
        raise CalibrationError(
            f"{path} has more than {limit / 1e6:.0f} million pixels; it is not decoded.",
            "Scale it down, or remove it.",
            id="EP322",
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise whatever their parser stumbles over
        raise CalibrationError(
            f"{path} can't be decoded: {_first_line(error)}.",
            "It is damaged or not the kind of picture that its name says. Replace or remove it.",
            id="EP322",
        ) from error
    return np.ascontiguousarray(pixels)


def axes_of(preprocess: Preprocess, shape: tuple[int, ...]) -> str:
    """The declared layout as one letter per axis of `shape`; a batch axis may be left out or added by rank.

    Raises `CalibrationError` when the layout can't describe `shape`.
    """
    layout = preprocess.layout
    for axes in (layout, layout.removeprefix("N"), f"N{layout}"):
        if len(axes) == len(shape) and axes.count("N") <= 1:
            break
    else:
        raise CalibrationError(
            f"layout {layout} has {len(layout)} axes, but the model's input is {list(shape)}.",
            f"Declare a layout of {len(shape)} letters, such as {guess_layout(shape) or 'NCHW'}.",
        )
    if axes[0] == "N" and shape[0] != 1:
        raise CalibrationError(
            f"layout {axes} makes one image a sample, but the model's input {list(shape)} wants {shape[0]} at once.",
            "Give a model with batch 1 (--input NAME=1x...), or ready arrays as .npz instead of images.",
        )
    return axes


def guess_layout(shape: tuple[int, ...]) -> str | None:
    """The layout that an image input of `shape` probably has, or None where it doesn't look like an image."""
    if len(shape) == 4 and shape[0] == 1:
        inner = guess_layout(shape[1:])
        return f"N{inner}" if inner in ("CHW", "HWC") else None
    if len(shape) == 3:
        if shape[0] in (1, 3) and min(shape[1:]) > 3:
            return "CHW"
        if shape[2] in (1, 3) and min(shape[:2]) > 3:
            return "HWC"
    return None


def value_range(preprocess: Preprocess) -> tuple[float, float]:
    """The least and the largest value that any image can take after ``(x - mean) / std``."""
    count = max(len(preprocess.mean), len(preprocess.std))
    mean = np.broadcast_to(np.asarray(preprocess.mean), (count,))
    std = np.broadcast_to(np.asarray(preprocess.std), (count,))
    ends = np.concatenate([(0.0 - mean) / std, (255.0 - mean) / std])
    return float(ends.min()), float(ends.max())


def resized_size(
    height: int, width: int, resize: tuple[int, int] | int | None, fit: str = "stretch"
) -> tuple[int, int]:
    """(height, width) after the declared resize, in whole numbers throughout.

    A single number is the shorter side; the longer is rounded down. [H, W] is reached by ``stretch``. ``inside`` keeps
    the aspect ratio: one side is reached, the other is rounded to nearest (half to even), at least 1. ``height`` keeps
    it as long as it can: height H, the width rounded up, at most W.
    """
    if resize is None:
        return height, width
    if not isinstance(resize, tuple):
        short = min(height, width)
        return height * resize // short, width * resize // short
    tall, wide = resize
    if fit == "height":
        return tall, min(wide, -(-width * tall // height))
    if fit == "inside" and wide * height < tall * width:
        return max(1, _nearest_whole(height * wide, width)), wide
    if fit == "inside":
        return tall, max(1, _nearest_whole(width * tall, height))
    return resize


def _nearest_whole(dividend: int, divisor: int) -> int:
    whole, rest = divmod(dividend, divisor)
    return whole + (2 * rest > divisor or (2 * rest == divisor and whole % 2 == 1))


def bilinear(
    image: Array, size: tuple[int, int], rows: slice = slice(None), columns: slice = slice(None)
) -> npt.NDArray[np.float32]:
    """Rows and columns of `image` [height, width, channels] resized to `size`, in float32, by the rule above."""
    top, bottom, down = (part[rows] for part in _neighbours(image.shape[0], size[0]))
    left, right, across = (part[columns] for part in _neighbours(image.shape[1], size[1]))
    # Each source row that is needed is interpolated along its width once.
    needed, place = np.unique(np.concatenate([top, bottom]), return_inverse=True)
    lines = image.take(needed, axis=0)
    first, second = (lines.take(at, axis=1).astype(np.float32) for at in (left, right))
    second -= first  # in place: a fifth of the time of the plain expression
    second *= across[None, :, None]
    first += second
    upper, lower = first.take(place[: len(top)], axis=0), first.take(place[len(top) :], axis=0)
    lower -= upper
    lower *= down[:, None, None]
    upper += lower
    return upper


def _size_after(image: Image, preprocess: Preprocess) -> tuple[int, int]:
    """(height, width) after resize, crop and pad."""
    height, width = resized_size(image.shape[0], image.shape[1], preprocess.resize, preprocess.fit)
    if preprocess.crop is not None:
        tall, wide = preprocess.crop
        if tall > height or wide > width:
            raise CalibrationError(
                f"crop {[tall, wide]} is larger than the image, which is {[height, width]} after resize.",
                "Add or enlarge `resize`, for instance to the shorter side.",
            )
        height, width = tall, wide
    if preprocess.pad is None:
        return height, width
    if height > preprocess.pad[0] or width > preprocess.pad[1]:
        raise CalibrationError(
            f"pad {list(preprocess.pad)} is smaller than the image, which is {[height, width]} by then.",
            f'Declare resize = {list(preprocess.pad)} and fit = "inside", or a crop.',
        )
    return preprocess.pad


def _check_shape(preprocess: Preprocess, axes: str, size: tuple[int, int], shape: tuple[int, ...]) -> None:
    """Refuse a declaration that doesn't lead to `shape`, before any pixel is computed."""
    channels = 1 if preprocess.color == "GRAY" else 3
    if "C" not in axes and channels != 1:
        raise CalibrationError(
            f"layout {axes} has no channel axis, but color {preprocess.color} has {channels} channels.",
            'Declare color = "GRAY", or a layout with C.',
        )
    lengths = {"N": 1, "C": channels, "H": size[0], "W": size[1]}
    got = tuple(lengths[axis] for axis in axes)
    if got != shape:
        raise CalibrationError(
            f"The declaration gives {size[0]}x{size[1]} pixels with {channels} channel{'s' * (channels > 1)}, "
            f"which as {axes} is {list(got)}; the model's input is {list(shape)}.",
            _cure(axes, shape, got),
        )


def _crop_and_resize(image: Image, preprocess: Preprocess) -> npt.NDArray[np.float32]:
    height, width = resized_size(image.shape[0], image.shape[1], preprocess.resize, preprocess.fit)
    rows, columns = slice(0, height), slice(0, width)
    if preprocess.crop is not None:
        tall, wide = preprocess.crop
        top, left = (height - tall) // 2, (width - wide) // 2
        rows, columns = slice(top, top + tall), slice(left, left + wide)
    if (height, width) == image.shape[:2]:
        return image[rows, columns].astype(np.float32)
    # Only the pixels that survive the crop are computed.
    if preprocess.method == "nearest":
        near_rows = _nearest(image.shape[0], height)[rows]
        near_columns = _nearest(image.shape[1], width)[columns]
        return image[near_rows[:, None], near_columns[None, :]].astype(np.float32)
    return bilinear(image, (height, width), rows, columns)


def _nearest(source: int, wanted: int) -> npt.NDArray[np.intp]:
    found: npt.NDArray[np.intp] = (2 * np.arange(wanted, dtype=np.intp) + 1) * source // (2 * wanted)
    return found


def _neighbours(source: int, wanted: int) -> tuple[Array, Array, Array]:
    """For each output place: the lower and the upper source index, and the share of the upper (float32)."""
    at = np.clip((np.arange(wanted) + 0.5) * (source / wanted) - 0.5, 0.0, source - 1.0)
    low = np.floor(at).astype(np.intp)
    return low, np.minimum(low + 1, source - 1), (at - low).astype(np.float32)


def _color(pixels: npt.NDArray[np.float32], preprocess: Preprocess) -> npt.NDArray[np.float32]:
    if preprocess.color == "BGR":
        return pixels[..., ::-1]
    if preprocess.color == "GRAY":
        red, green, blue = (pixels[..., channel] for channel in range(3))
        warm = np.float32(0.299) * red + np.float32(0.587) * green
        gray: npt.NDArray[np.float32] = warm + np.float32(0.114) * blue
        return gray[..., None]
    return pixels


def _check_channels(preprocess: Preprocess) -> None:
    channels = 1 if preprocess.color == "GRAY" else 3
    for name in ("mean", "std", "pad_value"):
        values = getattr(preprocess, name)
        if len(values) not in (1, channels):
            raise CalibrationError(
                f"{name} has {len(values)} values, but color {preprocess.color} has {channels} channels.",
                f"Give one value, or {channels}.",
            )


def _pad(pixels: npt.NDArray[np.float32], preprocess: Preprocess) -> npt.NDArray[np.float32]:
    if preprocess.pad is None:
        return pixels
    padded = np.empty((*preprocess.pad, pixels.shape[2]), np.float32)
    padded[:] = np.asarray(preprocess.pad_value, dtype=np.float32)
    height, width = pixels.shape[:2]
    top, left = 0, 0
    if preprocess.pad_place == "center":
        top, left = (preprocess.pad[0] - height) // 2, (preprocess.pad[1] - width) // 2
    padded[top : top + height, left : left + width] = pixels
    return padded


def _normalize(pixels: npt.NDArray[np.float32], preprocess: Preprocess) -> npt.NDArray[np.float32]:
    mean = np.asarray(preprocess.mean, dtype=np.float32)
    std = np.asarray(preprocess.std, dtype=np.float32)
    scaled: npt.NDArray[np.float32] = (pixels - mean) / std
    return scaled


def _lay_out(pixels: npt.NDArray[np.float32], axes: str) -> npt.NDArray[np.float32]:
    present = axes.replace("N", "")
    if "C" not in present:
        pixels = pixels[..., 0]
    moved = np.transpose(pixels, tuple("HWC".index(axis) for axis in present))
    return moved[None] if axes.startswith("N") else moved


def _to_dtype(array: npt.NDArray[np.float32], dtype: str) -> Array:
    wanted = np.dtype(dtype)
    if wanted.kind == "f":
        return array.astype(wanted)
    if wanted.kind in "iu":
        limits = np.iinfo(wanted)
        # In float64, where the limits of int32 are exact.
        return np.clip(np.rint(array.astype(np.float64)), limits.min, limits.max).astype(wanted)
    raise CalibrationError(f"The model's input has dtype {dtype}; an image can't become that.", "Give arrays as .npz.")


def _eight_bits(image: Any) -> Any:
    from PIL import Image as Pillow

    if image.mode.startswith("I"):  # 16-bit gray: convert("RGB") would cut it off at 255
        deep = np.asarray(image).astype(np.int64)
        return Pillow.fromarray((np.clip(deep, 0, 65535) // 257).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("its pixels are floating point numbers, whose scale is unknown")
    return image


def _cure(axes: str, shape: tuple[int, ...], got: tuple[int, ...]) -> str:
    guess = guess_layout(shape)
    if guess is not None and guess != axes:
        return f"The input looks like {guess}: declare layout = {guess!r}."
    if "C" in axes and shape[axes.index("C")] != got[axes.index("C")]:
        channels = shape[axes.index("C")]
        if channels in (1, 3):
            return f"Declare color = {'GRAY' if channels == 1 else 'RGB'!r}."
        return f"The model's input has {channels} channels, so it takes no photographs. Give arrays as .npz."
    height, width = shape[axes.index("H")], shape[axes.index("W")]
    return f"Declare resize = [{height}, {width}], or resize to the shorter side and crop = [{height}, {width}]."


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".") or type(error).__name__
