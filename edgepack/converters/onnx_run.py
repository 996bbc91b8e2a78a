"""Run an ONNX model as it stands, on zeros or noise."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx_value import axes, dtype_of
from onnx_walk import one_line
from surface import Refused


def run_once(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # it keeps what was freed
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    # The weights that stay in their files.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(Path.cwd()))
    try:
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        return [np.asarray(array) for array in session.run(None, feeds)]
    except Exception as error:  # onnxruntime's exceptions have no common base of their own
        raise Refused(
            f"onnxruntime can't run this model with the sizes given: {one_line(error)}.",
            "Check --input against what the model was trained for.",
            "EP305",
        ) from error


def example_inputs(model: onnx.ModelProto, seed: int | None) -> dict[str, np.ndarray]:
    """Zeros, or noise in [0, 1); whole numbers stay small, since they are often indices."""
    feeds = {}
    generator = np.random.default_rng(seed)
    for value in model.graph.input:
        dtype = np.dtype(dtype_of(value, "input"))
        noise = generator.random(axes(value)) if seed is not None else np.zeros(axes(value))
        feeds[value.name] = np.asarray(noise * 2 if dtype.kind in "iub" else noise, dtype)
    return feeds
