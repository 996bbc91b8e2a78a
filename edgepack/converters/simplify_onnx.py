# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "onnxsim==0.8.1",
#     "onnx==1.23.2",
#     "onnxruntime==1.31.1",
#     "numpy==2.4.6",
#     "protobuf==7.36.2",
#     "ml-dtypes==0.6.0",
#     "flatbuffers==25.12.19",
# ]
# ///
"""Simplify an ONNX file with onnxsim: fold what is constant, merge what can be merged, write out short loops.

Request: ``model`` (ONNX file, fixed shapes). Writes ``model.onnx`` in one file. Weights above a megabyte stay out of
onnxsim's sight (`large_weights`): it makes five copies of what it gets. Whether the result is right is
not decided here: the caller runs both files and compares. onnxruntime is in the environment because onnxsim
folds constants with it when it is there; ONNX's own reference evaluator is its slow and incomplete substitute.
"""

import json
import sys
from pathlib import Path

import onnx
import onnxsim

sys.path.insert(0, str(Path(__file__).parent))
import onnx_file
from large_weights import Weights, from_inputs
from unroll import unrolled

OLDEST_OPSET = 13  # onnxsim 0.8.1 writes Constant nodes that older opsets refuse
GROWTH = 1.1  # a file that grows by more than this is not simpler: constants were unrolled
SMALL = "1KB"  # the largest constant that is folded on the second try


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    source, out = Path(request["model"]), Path(request["out"])
    model = onnx_file.read(source)
    before, size = len(model.graph.node), onnx_file.size(model)
    weights = Weights(model, source.parent, Path(request["scratch"]))
    weights.fold()
    large = weights.to_inputs()
    small = model.ByteSize()
    simplified = simplify(model)
    if simplified.ByteSize() - small > (GROWTH - 1) * size:
        simplified = simplify(model, tensor_size_threshold=SMALL)
    if (longer := unrolled(simplified)) is not None:
        longer = simplify(longer)
        if longer.ByteSize() - small <= (GROWTH - 1) * size:
            simplified = longer
    from_inputs(simplified, large)
    onnx_file.write(simplified, source.parent, out / "model.onnx")
    result = {"nodes_before": before, "nodes_after": len(simplified.graph.node), "onnxsim": onnxsim.__version__}
    (out / "result.json").write_text(json.dumps(result))


def simplify(model: onnx.ModelProto, **options: object) -> onnx.ModelProto:
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < OLDEST_OPSET:
        options["target_opset_version"] = OLDEST_OPSET
    try:
        # check_n=0: outputs are compared by the caller, on real samples.
        simplified, ok = onnxsim.simplify(model, check_n=0, **options)
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        raise SystemExit(f"onnxsim can't simplify this model: {lines[0][:300]}") from error
    if not ok:
        raise SystemExit("onnxsim says that its own result is not valid")
    return simplified


if __name__ == "__main__":
    main()
