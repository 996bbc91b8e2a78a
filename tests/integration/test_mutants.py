"""Damaged model files through the harness: refused with a sentence, run, or the engine crashes. Never our code.

In a bundle the digests of the manifest find such files before an engine sees them; here nothing does. A third of
LiteRT's damaged files crash it, so the host has to be good at saying so.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgepack import emulator
from edgepack.types import Completed
from tests.integration.native import ASAN, Native, Ran, run

COUNT = int(os.environ.get("EDGEPACK_MUTANTS", "500"))
SECONDS = 15.0
NATIVE = emulator.Emulator(how="native", description="native", digest="", prefix=())
INTERESTING = (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\0\0", b"\1\0\0\0", b"\0\0\0\x10")
# Whose code a frame of a sanitizer's stack is: the engine's library, its source where it is compiled along, or ours.
OWNERS = (
    ("engine", re.compile(r"/libonnxruntime\.so|/libLiteRt\.so| ncnn/src/")),
    ("ours", re.compile(" cpp_runtime/")),
)


def mutate(data: bytes, dice: random.Random) -> bytes:
    """Flipped bits, a cut end, a changed word (where lengths and offsets are), a copied piece, a missing piece."""
    bad = bytearray(data)
    kind = dice.randrange(5)
    for _ in range(dice.randint(1, 4)):
        if not bad:
            break
        at = dice.randrange(len(bad))
        if kind == 0:
            bad[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            del bad[at:]
        elif kind == 2:
            bad[at & ~3 : (at & ~3) + 4] = dice.choice(INTERESTING)
        elif kind == 3:
            start = dice.randrange(len(bad))
            bad[at : at + 16] = bad[start : start + 16]
        else:
            del bad[at : at + dice.randint(1, 64)]
    return bytes(bad)


def owner(report: str) -> str:
    """Whose code was running: the innermost frame that is not the sanitizer's or the C library's."""
    for frame in re.findall(r"^\s+#\d+ .*$", report, re.M):
        for name, pattern in OWNERS:
            if pattern.search(frame):
                return name
    return "nobody"


def outcome(ran: Ran) -> str:
    """ok, differs, refused, hangs, memory, or ``crash of NAME``; anything else the harness failed to report."""
    if ran.code is None:
        return "hangs"
    if "rss limit exhausted" in ran.said:
        return "memory"
    if ran.sanitizer or ran.code not in (0, 1, 3):
        return f"crash of {owner(ran.said)}"
    ended = ran.lines[-1]["status"] if ran.lines and ran.lines[-1]["type"] == "end" else "no end"
    if ran.code == 0 and ended == "ok":
        return "ok"
    sentence = ran.last_words.startswith("edgepack: ") and ended == "failed"
    return {(1, True): "differs", (3, True): "refused"}.get((ran.code, sentence), f"exit {ran.code} without a sentence")


@pytest.mark.parametrize("engine", ["onnxruntime", "tflite", "ncnn"])
def test_damaged_model_files_never_crash_our_code(
    native: Native, tiny_bundle: Path, tmp_path: Path, engine: str
) -> None:
    """Model files and variant.txt, `COUNT` times, with the sanitizers watching; each engine crash reaches the host."""
    program = native.program(engine, ASAN)
    good = tiny_bundle / "variants" / f"{engine}-fp32"
    names = sorted(path.name for path in good.iterdir())

    def one(number: int) -> tuple[str, Ran]:
        dice = random.Random(f"{engine} {number}")
        variant = tmp_path / str(number)
        shutil.copytree(good, variant)
        # One in ten damages the descriptor, the others the model.
        name = "variant.txt" if number % 10 == 0 else dice.choice([name for name in names if name != "variant.txt"])
        (variant / name).write_bytes(mutate((good / name).read_bytes(), dice))
        golden = tiny_bundle / "golden"
        ran = run(program, "self-test", "--variant", variant, "--golden", golden, seconds=SECONDS)
        shutil.rmtree(variant)
        return outcome(ran), ran

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        results = list(pool.map(one, range(COUNT)))
    counts = Counter(name for name, _ in results)
    allowed = {"ok", "differs", "refused", "hangs", "memory", "crash of engine"}
    bad = [f"mutant {i}: {name}\n{ran.said[-3000:]}" for i, (name, ran) in enumerate(results) if name not in allowed]
    assert not bad, f"{counts}\n" + "\n".join(bad[:3])
    assert counts["refused"] > COUNT // 4, counts
    (tmp_path / "counts.txt").write_text(repr(counts))


def test_a_crash_of_the_engine_reaches_the_user_as_one(native: Native, tiny_bundle: Path, tmp_path: Path) -> None:
    """A .tflite whose inside points nowhere: the host names the signal, the engine and a cure, and gives no result."""
    program = native.program("tflite", "")
    good = tiny_bundle / "variants" / "tflite-fp32"
    crashed: list[Completed] = []
    for number in range(100):
        variant = tmp_path / str(number)
        shutil.copytree(good, variant)
        data = (good / "model.tflite").read_bytes()
        (variant / "model.tflite").write_bytes(mutate(data, random.Random(f"tflite {number}")))
        argv = [str(program), "self-test", "--variant", str(variant), "--golden", str(tiny_bundle / "golden")]
        ended = NATIVE.run(argv, SECONDS)
        if ended.returncode < 0:
            result = emulator.self_test(NATIVE, program.parent.parent, variant, tiny_bundle / "golden", "tflite")
            assert result.passed is False
            assert "the engine tflite crashed" in result.detail and "(SIG" in result.detail
            assert "build the bundle again" in result.detail
            crashed.append(ended)
            break
    assert crashed, "no damaged file made LiteRT crash: its parser has become better, use another file here"
