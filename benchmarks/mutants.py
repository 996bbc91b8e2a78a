"""Damaged model files through edgepack: always a sentence and the right exit code, never a traceback, hang or crash.

    python benchmarks/mutants.py --scratch DIR [--count 500] [--report docs/mutants.md]

Each mutant is a seeded damage of a whole file: flipped bits, a cut end, other words where lengths and offsets are,
copied, missing or exchanged pieces; of protobuf also a changed length and two fields that changed places. ``.onnx``
and ``.tflite`` go through ``edgepack check``; a ``.param`` is given to ``check``, too (which must say that it is no
source), and runs with the ncnn engine. The converters run in forks of servers that have imported their packages,
everything else in this process: if it dies, the next run says which mutant killed it and goes on behind it. Results
are lines of DIR/mutants.jsonl. Words of a result:

    taken      a whole answer: the damage was somewhere that doesn't matter, or only changed a number
    refused    an error with an id, a sentence and the exit code of a bad model or a bad command (3 or 2)
    tool       the same, but it was a converter that crashed or gave up, which the sentence says
    BAD        anything else
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from corpus_tools import forks
from onnx import TensorProto, helper, numpy_helper

from edgepack import artifact as artifacts
from edgepack import cli, plugins
from edgepack.converters.wire import BYTES, WireError, encoded, fields
from edgepack.errors import EdgepackError
from edgepack.types import Model, Precision, TensorSpec

ROOT = Path(__file__).parent.parent
SECONDS = 180
WORDS = (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"\0\0\0\0", b"\1\0\0\0", b"\0\0\0\x10")
RIGHT_CODES = {"EP2": 2, "EP3": 3}
NESTED = {"model": {7: "graph"}, "graph": {1: "node", 5: "tensor", 11: "value", 12: "value"}, "node": {5: "attribute"}}
Place = tuple[int, int, int]  # start of a field, start of its value, end


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    scratch = options.scratch.absolute()
    scratch.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("EDGEPACK_CACHE", str(scratch / "cache"))
    forks.install()
    results = run(scratch, options.count)
    for kind in ("onnx", "tflite", "param"):
        print(kind, dict(Counter(item["status"] for item in results if item["kind"] == kind)))
    if options.report:
        options.report.write_text(report(results))
    sys.exit(any(item["status"] == "BAD" for item in results))


def run(scratch: Path, count: int) -> list[dict[str, Any]]:
    """Every mutant's result; those of an earlier run are taken from its file."""
    file = scratch / "mutants.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    results = {(item["kind"], item["number"]): item for item in lines}
    seeds = whole_files(scratch)
    with file.open("a") as log:
        for number in range(count):
            for kind, check in (("onnx", checked), ("tflite", checked), ("param", run_param)):
                found = results.get((kind, number))
                if found is not None and found["status"] not in ("begun", "stopped"):
                    continue
                item: dict[str, Any] = {"kind": kind, "number": number}
                if found is not None and found["status"] == "begun":
                    item |= {"status": "BAD", "code": None, "said": "edgepack's own process died"}
                else:
                    log.write(json.dumps({**item, "status": "begun"}) + "\n")
                    log.flush()
                    try:
                        item |= check(*mutant(seeds[kind], kind, number), scratch)
                    except KeyboardInterrupt:
                        log.write(json.dumps({**item, "status": "stopped"}) + "\n")
                        raise
                results[kind, number] = item
                log.write(json.dumps(item) + "\n")
                log.flush()
    return [item for (_, number), item in sorted(results.items()) if number < count]


def mutant(seeds: list[Path], kind: str, number: int) -> tuple[Path, bytes]:
    """One of the whole files, and its damaged bytes."""
    dice = random.Random(f"{kind} {number}")
    seed = dice.choice(seeds)
    data = seed.read_bytes()
    ways: dict[str, list[Callable[[bytes, random.Random], bytes]]] = {
        "onnx": [exchanged_fields, changed_length],
        "tflite": [],
        "param": [exchanged_lines],
    }
    return seed, dice.choice([*ways[kind], damaged, damaged])(data, dice)


def damaged(data: bytes, dice: random.Random) -> bytes:
    """Flipped bits, a cut end, a changed word, a copied piece, a missing piece."""
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
            bad[at & ~3 : (at & ~3) + 4] = dice.choice(WORDS)
        elif kind == 3:
            start = dice.randrange(len(bad))
            bad[at : at + 16] = bad[start : start + 16]
        else:
            del bad[at : at + dice.randint(1, 64)]
    return bytes(bad)


def exchanged_fields(data: bytes, dice: random.Random) -> bytes:
    """Two fields of one message in each other's place, or one with another's number."""
    group = dice.choice([group for group in messages(data) if len(group) > 1])
    (a, _, b), (c, _, d) = sorted(dice.sample(group, 2))
    if dice.random() < 0.5:
        return data[:a] + data[c:d] + data[b:c] + data[a:b] + data[d:]
    bad = bytearray(data)
    bad[a] = bad[c]  # numbers below 16, which nearly all are, take one byte with their type
    return bytes(bad)


def changed_length(data: bytes, dice: random.Random) -> bytes:
    """Another length of a field, and none of what holds it."""
    start, first, end = dice.choice([place for group in messages(data) for place in group])
    length = end - first
    wrong = dice.choice([0, length - 1, length + 1, length * 2, 2**31, 2**63 - 1, dice.randrange(length + 9)])
    return data[: start + 1] + encoded(max(wrong, 0)) + data[first:]


def messages(data: bytes) -> list[list[Place]]:
    """The places of the fields with a length, message by message, of a model."""
    found: list[list[Place]] = []

    def walk(start: int, end: int, message: str) -> None:
        here: list[Place] = []
        at = start
        for number, wire, first, last in fields(data, start, end):
            if wire == BYTES:
                here.append((at, first, last))
                if inner := NESTED.get(message, {}).get(number):
                    walk(first, last, inner)
            at = last
        found.append(here)

    with contextlib.suppress(WireError):
        walk(0, len(data), "model")
    return [group for group in found if group]


def exchanged_lines(data: bytes, dice: random.Random) -> bytes:
    """Two lines, two words, or a word of a text file changed."""
    lines = [line.split(b" ") for line in data.splitlines()]
    one, two = (dice.randrange(len(lines)) for _ in range(2))
    kind = dice.randrange(3)
    if kind == 0:
        lines[one], lines[two] = lines[two], lines[one]
    else:
        a, b = dice.randrange(len(lines[one])), dice.randrange(len(lines[two]))
        if kind == 1:
            lines[one][a], lines[two][b] = lines[two][b], lines[one][a]
        else:
            lines[one][a] = dice.choice([b"-1", b"99999999", b"", b"0=-233", b"-23330=4,1", b"\xff\xfe", b"x" * 70000])
    return b"\n".join(b" ".join(words) for words in lines) + b"\n"


def checked(seed: Path, data: bytes, scratch: Path) -> dict[str, Any]:
    """What ``edgepack check`` says about a file."""
    folder = scratch / "mutant"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / seed.name).write_bytes(data)
    engine = "tflite" if seed.suffix == ".tflite" else "onnxruntime"
    found = command(["check", seed.name, "--target", "linux-x86_64", "--engine", engine], folder)
    left = sorted(path.name for path in folder.iterdir())
    if left != [seed.name]:
        found |= {"status": "BAD", "said": f"it left {left}"}
    return found


def command(words: list[str], folder: Path) -> dict[str, Any]:
    """Run the command line in this process, in `folder`."""
    said = io.StringIO()
    code: Any = 0
    before, sys.argv = sys.argv, ["edgepack", *words]
    try:
        with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            with limited():
                cli.main()
    except SystemExit as leaving:
        code = leaving.code or 0
        if code == 130:  # somebody stops this program: the command line takes signals as its own
            raise KeyboardInterrupt from leaving
    except BaseException:
        code = 70
        said.write(traceback.format_exc())
    finally:
        sys.argv = before
    return judged(code, said.getvalue())


def judged(code: Any, said: str) -> dict[str, Any]:
    """A status for an exit code and what was said."""
    sentence = next((line for line in said.splitlines() if line.startswith("error EP")), "")
    name = sentence[6:11]
    status = "tool" if name == "EP331" else "refused"
    if "Traceback" in said or (code and not sentence and code != 3):
        status = "BAD"
    elif not code or not sentence:
        status = "taken"
    elif code != RIGHT_CODES.get(name[:3]):
        status = "BAD"
    return {"status": status, "code": code, "id": name, "said": said[-1500:] if status == "BAD" else sentence[:200]}


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Raise `TimeoutError` in the block after `SECONDS`."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"a hang: more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run_param(seed: Path, data: bytes, scratch: Path) -> dict[str, Any]:
    """A damaged .param: no source for ``check``; the engine runs it or says why not."""
    refusal = checked(seed, data, scratch)
    if refusal["status"] != "refused":
        return refusal | {"status": "BAD"}
    folder = scratch / "ncnn-mutant"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(seed.parent, folder)
    (folder / seed.name).write_bytes(data)
    (folder / "made").mkdir()
    found = artifacts.read(folder)
    try:
        with limited():
            plugins.load("engines", "ncnn").run(found, surface(), scratch / "samples", folder / "made")
    except EdgepackError as error:
        bad = "Traceback" in error.message or not error.message
        return {
            "status": "BAD" if bad else "refused",
            "code": error.exit_code,
            "id": error.id,
            "said": error.message[:200],
        }
    except Exception:
        return {"status": "BAD", "code": 70, "said": traceback.format_exc()[-1500:]}
    return {"status": "taken", "code": 0, "id": "", "said": ""}


def surface(path: Path = Path()) -> Model:
    """The model that the .param is made from."""
    specs = [TensorSpec(name=n, dtype="float32", shape=s) for n, s in (("x", (1, 3, 16, 16)), ("y", (1, 4)))]
    return Model(path=path, digest="", opset=17, inputs=(specs[0],), outputs=(specs[1],), operators=())


def whole_files(scratch: Path) -> dict[str, list[Path]]:
    """The files that are damaged: two ONNX models, two TFLite files, one of ncnn."""
    folder = scratch / "whole"
    folder.mkdir(exist_ok=True)
    onnx.save(plain(), folder / "plain.onnx")
    onnx.save(branching(), folder / "branching.onnx")
    (scratch / "samples").mkdir(exist_ok=True)
    np.save(scratch / "samples" / "0.npy", np.random.default_rng(0).random((2, 1, 3, 16, 16), np.float32))
    made = scratch / "ncnn"
    if not (made / "artifact.json").is_file():
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        engine = plugins.load("engines", "ncnn")
        engine.export(surface(folder / "plain.onnx"), Precision.FP32, None, None, made)
    return {
        "onnx": [folder / "plain.onnx", folder / "branching.onnx"],
        "tflite": sorted((ROOT / "tests" / "data").glob("*.tflite")),
        "param": [next(made.glob("*.param"))],
    }


def plain() -> onnx.ModelProto:
    """Convolution, pooling, Gemm."""
    dice = np.random.default_rng(0)
    held = {"w": (8, 3, 3, 3), "b": (8,), "v": (4, 8), "c": (4,)}
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["1"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["1"], ["2"], name="relu"),
        helper.make_node("GlobalAveragePool", ["2"], ["3"], name="pool"),
        helper.make_node("Flatten", ["3"], ["4"], name="flat"),
        helper.make_node("Gemm", ["4", "v", "c"], ["y"], name="fully", transB=1),
    ]
    return model(
        nodes, [1, 3, 16, 16], [1, 4], {k: dice.standard_normal(v).astype(np.float32) for k, v in held.items()}, 17
    )


def branching() -> onnx.ModelProto:
    """An old opset: a branch that captures a value, a Constant node, a shape that is computed."""

    def branch(op: str) -> onnx.GraphProto:
        node = helper.make_node(op, ["s", "s"], ["r"])
        return helper.make_graph([node], op, [], [helper.make_tensor_value_info("r", TensorProto.FLOAT, None)])

    nodes = [
        helper.make_node("Resize", ["x", "roi", "scales"], ["1"], mode="linear"),
        helper.make_node("Shape", ["1"], ["2"]),
        helper.make_node("Constant", [], ["3"], value=numpy_helper.from_array(np.array([0], np.int64))),
        helper.make_node("Gather", ["2", "3"], ["4"]),
        helper.make_node("Concat", ["4", "rest"], ["5"], axis=0),
        helper.make_node("Reshape", ["1", "5"], ["6"]),
        helper.make_node("Softmax", ["6"], ["s"], axis=1),
        helper.make_node("ReduceMax", ["s"], ["7"], keepdims=0),
        helper.make_node("Greater", ["7", "half"], ["8"]),
        helper.make_node("If", ["8"], ["9"], then_branch=branch("Add"), else_branch=branch("Mul")),
        helper.make_node("Slice", ["9", "from", "to"], ["y"]),
    ]
    held = {
        "roi": np.zeros(0, np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
        "rest": np.array([-1], np.int64),
        "half": np.array(0.5, np.float32),
        "from": np.array([0, 1], np.int64),
        "to": np.array([1, 5], np.int64),
    }
    return model(nodes, [1, 2, 4, 4], [1, 4], held, 11)


def model(
    nodes: list[onnx.NodeProto], taken: list[int], given: list[int], held: dict[str, np.ndarray], opset: int
) -> onnx.ModelProto:
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in (("x", taken), ("y", given))]
    weights = [numpy_helper.from_array(array, name) for name, array in held.items()]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def report(results: list[dict[str, Any]]) -> str:
    """The page."""
    lines = [
        "# Damaged model files",
        "",
        "Written by `benchmarks/mutants.py --report`; its head says what is done.",
        "",
    ]
    words = ("taken", "refused", "tool", "BAD")
    lines += ["| | " + " | ".join(words) + " |", "|---" * (len(words) + 1) + "|"]
    for kind in ("onnx", "tflite", "param"):
        count = Counter(item["status"] for item in results if item["kind"] == kind)
        lines.append(f"| {sum(count.values())} x .{kind} | " + " | ".join(str(count[word]) for word in words) + " |")
    ids = Counter((item["kind"], item["id"]) for item in results if item.get("id"))
    lines += ["", "By id of the error (docs/errors.md):", ""]
    lines += [f"- .{kind}: {name} {count} x" for (kind, name), count in sorted(ids.items())]
    for item in results:
        if item["status"] == "BAD":
            lines += ["", f"## BAD: {item['kind']} {item['number']}", "", "```", item["said"], "```"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
