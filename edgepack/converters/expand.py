"""Operators that ONNX defines by other operators, written out for a converter that doesn't know them."""

import onnx
import onnx.inliner

# None of these has a form in onnx2tf 2.6.9 (it makes custom operators of them) or in ncnn.
EXPANDED = (
    "AffineGrid",
    "Attention",
    "BlackmanWindow",
    "Celu",
    "CenterCropPad",
    "GroupNormalization",
    "HammingWindow",
    "HannWindow",
    "MeanVarianceNormalization",
    "NegativeLogLikelihoodLoss",
    "RMSNormalization",
    "RotaryEmbedding",
    "Shrink",
    "SoftmaxCrossEntropyLoss",
    "Swish",
    "ThresholdedRelu",
)


def expanded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with those operators written out; as it is when there are none, or onnx has no definition."""
    wanted = sorted({node.op_type for node in model.graph.node if node.domain in ("", "ai.onnx")} & set(EXPANDED))
    for name in wanted:
        try:
            found = onnx.inliner.inline_selected_functions(model, [("", name)], inline_schema_functions=True)
            onnx.checker.check_model(found)
            model = found
        except Exception as error:  # the converter then says what it can't do
            print(f"{name} can't be written out: {error}")
    return model
