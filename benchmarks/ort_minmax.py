"""ONNX Runtime's own MinMax calibrator on a tensor folder: what `calibration.py` compares edgepack's with.

    python benchmarks/ort_minmax.py MODEL.onnx SAMPLES_FOLDER SCRATCH_MODEL.onnx

Runs under the environment of ``converters/quantize_onnx.py``. Samples are read one at a time, as ours are.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "edgepack" / "converters"))

import numpy as np
import onnx
from activations import rows
from onnxruntime.quantization.calibrate import CalibrationDataReader, CalibrationMethod, create_calibrator


class Reader(CalibrationDataReader):
    """The samples of a tensor folder with one input."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.name = onnx.load(model).graph.input[0].name
        self.rows = rows(folder / "0.npy")

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next sample, or None at the end."""
        row = next(self.rows, None)
        return None if row is None else {self.name: row}


def main() -> None:
    model, folder, scratch = map(Path, sys.argv[1:])
    calibrator = create_calibrator(model, augmented_model_path=str(scratch), calibrate_method=CalibrationMethod.MinMax)
    calibrator.collect_data(Reader(model, folder))
    print(len(calibrator.compute_data().data), "tensors")


if __name__ == "__main__":
    main()
