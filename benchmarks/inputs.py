"""Real inputs for the models: photographs, lines of text, faces, bytes of files, sentences.

Everything is taken from files of installed packages and from this Python's own library, and parted for
calibration and verification by its source (photograph, page half, file, topic), never by crop.
"""

from __future__ import annotations

import importlib.resources
import pydoc_data.topics
import re
import sysconfig
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# By photograph: the stereo pair (motorcycle_left, motorcycle_right) is on one side.
CALIBRATION = ("camera", "chelsea", "china", "coffee", "retina", "brick", "coins", "gravel", "cell")
VERIFICATION = (
    "astronaut", "rocket", "motorcycle_left", "motorcycle_right", "flower", "moon", "clock_motion", "ihc", "grass",
    "hubble_deep_field",
)  # fmt: skip
# More photographs of the same packages that calibration never sees, for a wider evaluation.
MORE = ("color", "horse", "logo", "microaneurysms", "page", "phantom", "text")
FACE = (175, 60, 285, 205)  # in astronaut.png: left, top, right, bottom
BYTES, STRIPPED_FROM, NO_BYTE = 1024, 4096, 256  # magika's beg_size and end_size, block_size, padding_token


def skimage(name: str) -> Path:
    """A file of scikit-image's own data folder."""
    return Path(str(importlib.resources.files("skimage"))) / "data" / name


def photograph(name: str) -> Image.Image:
    """One of the photographs above, in RGB."""
    if name in ("china", "flower"):
        path = Path(str(importlib.resources.files("sklearn"))) / "datasets" / "images" / f"{name}.jpg"
    else:
        path = next(p for p in (skimage(f"{name}{suffix}") for suffix in (".png", ".jpg")) if p.is_file())
    return Image.open(path).convert("RGB")


def crops(names: tuple[str, ...], count: int, side: int, seed: int) -> list[tuple[str, Image.Image]]:
    """`count` square crops, as evenly from the photographs as can be: 0.4 to 1.0 of the short side, half mirrored."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        name = names[number % len(names)]
        image = photograph(name)
        size = int(min(image.size) * random.uniform(0.4, 1.0))
        left = int(random.integers(0, image.width - size + 1))
        top = int(random.integers(0, image.height - size + 1))
        crop = image.resize((side, side), Image.Resampling.BILINEAR, (left, top, left + size, top + size))
        if random.random() < 0.5:
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        found.append((f"{number:03d}_{name}", crop))
    return found


def pages(part: str, count: int, side: int, seed: int) -> list[tuple[str, Image.Image]]:
    """What a text detector looks at: a quarter scanned text, the rest photographs with sentences drawn on them.

    Without the drawing a detector finds nothing in these photographs, and nothing is nothing to compare.
    """
    random = np.random.default_rng(seed)
    names, scan = (CALIBRATION, "page") if part == "calibration" else (VERIFICATION, "text")
    shots, scans = crops(names, count, side, seed), crops((scan,), count, side, seed)
    written = sentences(part)
    found = []
    for number in range(count):
        if number % 4 == 0:
            found.append(scans[number])
            continue
        name, image = shots[number]
        draw = ImageDraw.Draw(image)
        for _ in range(int(random.integers(1, 5))):
            text = written[int(random.integers(len(written)))][: int(random.integers(6, 28))]
            place = (int(random.integers(0, side // 2)), int(random.integers(0, side - 30)))
            ink = tuple(int(c) for c in random.choice([0, 40, 215, 255]) + random.integers(-5, 5, 3))
            draw.text(place, text, fill=ink, font=ImageFont.load_default(int(random.integers(14, 36))))
        found.append((name, image))
    return found


def save(images: list[tuple[str, Image.Image]], folder: Path) -> Path:
    """Write pictures as PNG and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, image in images:
        image.save(folder / f"{name}.png")
    return folder


def stack(images: list[tuple[str, Image.Image]], mean: float, std: float) -> np.ndarray:
    """[count, 1, 3, height, width] float32 in RGB."""
    pixels = np.stack([np.asarray(image, np.float32) for _, image in images])
    return ((pixels - mean) / std).transpose(0, 3, 1, 2)[:, None].astype(np.float32)


def lines_of_text(part: str, count: int, seed: int) -> list[np.ndarray]:
    """Lines as OCR gets them, uint8 [48, width, 3].

    Half are cut from scanned pages (scikit-image's page.png: upper half for calibration, lower half for
    verification, and text.png), half are sentences of Python's help drawn with Pillow's font.
    """
    random = np.random.default_rng(seed)
    scanned = _scanned_lines(part)
    written = sentences(part)
    found = []
    for number in range(count):
        if number % 2:
            line = scanned[(number // 2) % len(scanned)]
            width = int(min(line.width, line.height * random.uniform(3, 8)))
            left = int(random.integers(0, line.width - width + 1))
            line = line.crop((left, 0, left + width, line.height))
        else:
            line = _draw(written[number % len(written)][:28], int(random.integers(20, 34)), random)
        found.append(np.asarray(line.resize((max(48, line.width * 48 // line.height), 48)).convert("RGB")))
    return found


def _scanned_lines(part: str) -> list[Image.Image]:
    """Text lines of a page: runs of rows with ink, for they are level there."""
    page = Image.open(skimage("page.png")).convert("L")
    half = page.height // 2
    page = page.crop((0, 0, page.width, half) if part == "calibration" else (0, half, page.width, page.height))
    pixels = np.asarray(page, np.float32)
    # Paper gets darker to one side: compare with the local brightness.
    ink = (pixels < np.median(pixels, axis=0, keepdims=True) - 35).sum(axis=1) > 3
    edges = np.flatnonzero(np.diff(np.concatenate([[0], ink.astype(np.int8), [0]])))
    runs = [(int(a), int(b)) for a, b in edges.reshape(-1, 2) if 7 <= b - a <= 30]
    found = [page.crop((0, max(0, a - 3), page.width, min(page.height, b + 3))) for a, b in runs]
    if not found:
        raise SystemExit("No line of text was found in page.png.")
    return found


def _draw(text: str, size: int, random: np.random.Generator) -> Image.Image:
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    paper, ink = int(random.integers(180, 256)), int(random.integers(0, 90))
    image = Image.new("L", (int(right - left) + 16, int(bottom - top) + 12), paper)
    ImageDraw.Draw(image).text((8 - left, 6 - top), text, fill=ink, font=font)
    return image


def ocr_batch(lines: list[np.ndarray], width: int, turn: bool) -> np.ndarray:
    """[count, 1, 3, 48, width] as rapidocr prepares it: (x / 255 - 0.5) / 0.5, BGR, zeros to the right.

    With `turn` every other line stands on its head: what PP-OCR's cls tells apart.
    """
    batch = np.zeros((len(lines), 1, 3, 48, width), np.float32)
    for number, line in enumerate(lines):
        picture = line if line.shape[1] <= width else np.asarray(Image.fromarray(line).resize((width, 48)))
        picture = picture[::-1, ::-1] if turn and number % 2 else picture
        batch[number, 0, :, :, : picture.shape[1]] = (picture[..., ::-1] / 127.5 - 1).transpose(2, 0, 1)
    return batch


def faces(part: str, count: int, side: int, seed: int) -> list[tuple[str, Image.Image]]:
    """What a face cascade looks at: half faces (two persons in three from lfw_subset), half crops of scenes."""
    random = np.random.default_rng(seed)
    stored = np.load(skimage("lfw_subset.npy"), allow_pickle=False)
    people = stored[:50] if part == "calibration" else stored[50:100]
    scenes = crops(CALIBRATION if part == "calibration" else VERIFICATION, count, side, seed)
    found = []
    for number in range(count):
        if number % 2:
            found.append(scenes[number])
        elif number % 6 == 0 and part != "calibration":
            found.append((f"{number:03d}_astronaut", _astronaut(side, random)))
        else:
            gray = (people[number % len(people)] * 255).clip(0, 255).astype(np.uint8)
            face = Image.fromarray(gray).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)
            found.append((f"{number:03d}_lfw", face))
    return found


def _astronaut(side: int, random: np.random.Generator) -> Image.Image:
    left, top, right, bottom = FACE
    middle = np.array([(left + right) / 2, (top + bottom) / 2]) + random.uniform(-8, 8, 2)
    half = (bottom - top) / 2 * random.uniform(0.9, 1.4)
    box = tuple(np.clip([*(middle - half), *(middle + half)], 0, 512))
    return photograph("astronaut").resize((side, side), Image.Resampling.BILINEAR, box)


def bytes_of_files(part: str, count: int) -> np.ndarray:
    """[count, 1, 2048] int32: first and last bytes of real files of this Python's library, as magika prepares them.

    Every kind of file there (.py, .so, .txt, .pyc, .exe ...) in turn. Files are parted by the first word of their
    names, so that a module and what is compiled from it are on one side; of files that look alike to magika only the
    first is taken.
    """
    root = Path(sysconfig.get_path("stdlib"))
    found = [
        path
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.stat().st_size >= 64 and "site-packages" not in path.parts
    ]
    words = sorted({path.name.partition(".")[0] for path in found})
    ours = set(words[0 if part == "calibration" else 1 :: 2])
    kinds: dict[str, list[np.ndarray]] = {}
    seen: set[bytes] = set()
    for path in found:
        row = _features(path)
        if row.tobytes() not in seen:
            seen.add(row.tobytes())
            if path.name.partition(".")[0] in ours:
                kinds.setdefault(path.suffix, []).append(row)
    picked: list[np.ndarray] = []
    place = 0
    while len(picked) < count:
        picked += [rows[place] for rows in kinds.values() if place < len(rows)]
        place += 1
    return np.stack(picked[:count])[:, None]


def _features(path: Path) -> np.ndarray:
    content = path.read_bytes()
    start = content[:STRIPPED_FROM].lstrip()[:BYTES]
    end = content[-STRIPPED_FROM:].rstrip()[-BYTES:]
    row = np.full(2 * BYTES, NO_BYTE, np.int32)
    row[: len(start)] = list(start)
    row[2 * BYTES - len(end) :] = list(end)
    return row


def sentences(part: str) -> list[str]:
    """English sentences of Python's own help; every other topic is for calibration."""
    names = sorted(pydoc_data.topics.topics)[0 if part == "calibration" else 1 :: 2]
    found = []
    for name in names:
        text = re.sub(r"\s+", " ", pydoc_data.topics.topics[name])
        for sentence in re.split(r"(?<=[.!?]) ", text):
            if 40 <= len(sentence) <= 240 and re.fullmatch(r"[A-Z][a-z]+ [\w ,;:'()\"-]+\.", sentence):
                found.append(sentence)
    return found
