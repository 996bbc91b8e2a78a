"""Whether INT8 files have the same bytes when their quantizers run with one thread and with two.

    EDGEPACK_CACHE=DIR python benchmarks/same_bytes.py FOLDER_OF_PREPARE_MODELS [--only NAME]... [--engine NAME]...

Each model is quantized twice at the highest effort from the same samples by each engine, with the number of threads
that numpy and the engines may use as the only difference. Prints a line for each, and fails where any file differs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from prepared import Prepared, entries, prepare

from edgepack import artifact, converter, plugins, steps
from edgepack.engines import onnxruntime, tflite
from edgepack.quantizers import static
from edgepack.types import Int8Options, Precision

ENGINES = ("onnxruntime", "tflite", "ncnn")
MODELS = ("MTCNN O-Net", "BlazeFace front", "PP-OCRv2 cls")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", action="append", default=[])
    parser.add_argument("--engine", action="append", choices=ENGINES, default=[])
    options = parser.parse_args()
    folder, differ = options.folder.absolute(), 0
    with tempfile.TemporaryDirectory() as scratch:
        for entry in entries(folder):
            if entry["name"] in (options.only or MODELS):
                prepared = prepare(entry, folder, Path(scratch, "inputs"), crops=("evaluation",))
                for engine in options.engine or ENGINES:
                    out = Path(scratch, "int8", entry["name"], engine)
                    one, two = (made(prepared, engine, threads, out / str(threads)) for threads in (1, 2))
                    differ += one != two
                    print(f"{entry['name']}, {engine}: {'the same' if one == two else 'OTHER'} bytes", flush=True)
    return int(differ > 0)


def made(prepared: Prepared, name: str, threads: int, out: Path) -> dict[str, bytes]:
    """The files of one variant."""
    out.mkdir(parents=True)
    engine = plugins.load("engines", name)
    base = engine.base(Precision.INT8)
    floating = steps.export(prepared.cache, engine, prepared.model, base, None, None).path if base else None
    with converters_with(threads):
        options = Int8Options(effort="high")
        engine.export(prepared.model, Precision.INT8, prepared.calibration, floating, out, options)
    return {file: (out / file).read_bytes() for file in artifact.read(out).files}


@contextmanager
def converters_with(threads: int) -> Iterator[None]:
    """Run every converter script with so many threads."""
    convert = converter.convert

    def threaded(script: str, request: dict[str, Any], out: Path, **more: Any) -> dict[str, Any]:
        return convert(script, request, out, **{**more, "threads": threads})

    with ExitStack() as stack:
        for module in (converter, onnxruntime, static, tflite):
            stack.enter_context(mock.patch.object(module, "convert", threaded))
        yield


if __name__ == "__main__":
    sys.exit(main())
