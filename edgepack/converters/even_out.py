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
"""Even out the channels of an ONNX model's activations (`equalising`), for a quantizer that starts from another format.

Request: ``model`` (ONNX file, fixed shapes), ``samples`` (tensor folder), ``kept`` (layers to leave alone, by the first
outputs of their nodes). Writes ``model.onnx`` with other constants and the same nodes; the result's ``changed`` is the
number of tensors that were scaled. Only factors that layers take into their weights: where integers are computed, a Mul
beside a layer would be rounded too.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

sys.path.insert(0, str(Path(__file__).parent))
from equalising import Equaliser
from onnx_session import feeds, session_of

WATCHED = 24  # calibration samples from which the unevenness of channels is known


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out, scratch = Path(request["out"]), Path(request["scratch"])
    model = plain(onnx.load(request["model"]))
    equaliser = Equaliser(model, set(request["kept"]))
    inputs = [value.name for value in model.graph.input]
    asked = [name for name in equaliser.watched if name not in inputs]
    watching = onnx.ModelProto()
    watching.CopyFrom(model)
    there = {value.name for value in model.graph.output}
    watching.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked if name not in there)
    onnx.save(watching, scratch / "watching.onnx")
    session = session_of(scratch / "watching.onnx", "ORT_ENABLE_ALL")
    for feed, _ in zip(feeds(session, Path(request["samples"])), range(WATCHED), strict=False):
        values = {**feed, **dict(zip(asked, session.run(asked, feed), strict=True))}
        for name, item in equaliser.watched.items():
            item.add(np.asarray(values[name]))
    changed = equaliser.apply(beside=False)
    used = {name for node in model.graph.node for name in node.input}
    kept = [item for item in model.graph.initializer if item.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    onnx.save(model, out / "model.onnx")
    (out / "result.json").write_text(json.dumps({"changed": changed}))


def plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name every node, note every shape, and make initializers of constants; no tensor gets another name."""
    nodes = []
    for index, node in enumerate(model.graph.node):
        tensor = next((a.t for a in node.attribute if a.name == "value"), None) if node.op_type == "Constant" else None
        if tensor is not None:
            model.graph.initializer.append(numpy_helper.from_array(numpy_helper.to_array(tensor), node.output[0]))
            continue
        node.name = f"{node.op_type}_{index}"
        nodes.append(node)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return onnx.shape_inference.infer_shapes(model, data_prop=True)


if __name__ == "__main__":
    main()
