# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "onnxruntime==1.31.1",
#     "onnx==1.23.2",
#     "numpy==2.4.6",
#     "protobuf==7.36.2",
#     "ml-dtypes==0.6.0",
#     "flatbuffers==25.12.19",
# ]
# ///
"""Write which operators, and which types of them, a reduced build of ONNX Runtime must have for some models.

Request: ``models`` (files, ``.ort`` or ``.onnx``), ``names`` (what to call them). Writes ``required_operators.config``
by ONNX Runtime's own tool, in the format of its build's ``--include_ops_by_config``.

An ``.onnx`` file is optimised when the device loads it, so it counts twice: as it is (constants are folded by the
operators themselves) and as optimised.
"""

import json
import sys
from pathlib import Path

import onnxruntime
from onnxruntime.tools.ort_format_model import create_config_from_models

LEVELS = onnxruntime.GraphOptimizationLevel
NAME = "required_operators.config"


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    scratch, out = Path(request["scratch"]), Path(request["out"])
    files = []
    for index, model in enumerate(map(Path, request["models"])):
        files += [model] if model.suffix == ".ort" else in_ort_format(model, scratch / f"model{index}")
    create_config_from_models(files, scratch / NAME, enable_type_reduction=True)
    lines = [line for line in (scratch / NAME).read_text().splitlines() if not line.startswith("#")]
    minimal = "" if all(model.endswith(".ort") for model in request["models"]) else ", not --minimal_build"
    head = [
        f"# What ONNX Runtime {onnxruntime.__version__} must have for {', '.join(request['names'])}.",
        "# build.sh --include_ops_by_config THIS_FILE --enable_reduced_operator_type_support --build_shared_lib"
        f" --config MinSizeRel{minimal}",
    ]
    (out / NAME).write_text("\n".join([*head, *lines]) + "\n")
    (out / "result.json").write_text(json.dumps({"onnxruntime": onnxruntime.__version__}))


def in_ort_format(model: Path, stem: Path) -> list[Path]:
    """`model` in ONNX Runtime's format, not optimised and optimised."""
    found = []
    for name, level in (("as-is", LEVELS.ORT_DISABLE_ALL), ("optimised", LEVELS.ORT_ENABLE_ALL)):
        path = stem.with_name(f"{stem.name}-{name}.ort")
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = level
        options.log_severity_level = 3
        options.optimized_model_filepath = str(path)
        options.add_session_config_entry("session.save_model_format", "ORT")
        onnxruntime.InferenceSession(
            str(model), options, providers=["CPUExecutionProvider"], disabled_optimizers=["NchwcTransformer"]
        )
        found.append(path)
    return found


if __name__ == "__main__":
    main()
