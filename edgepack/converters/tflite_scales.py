"""The scales that a quantized model brings along, in the .tflite that is written."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from activations import Seen
from ai_edge_litert import schema_py_generated as schema
from ai_edge_quantizer.qtyping import BuiltinOperator, TensorType
from tflite_weights import Chosen, Layer

LIMIT = 127  # of weights: kernels for ARM add two products in 16 bits, which -128 * -128 twice would overflow


@dataclass
class Fixed:
    """A tensor whose scale and zero point are given; stands where a histogram would."""

    scale: float
    zero: int

    def chosen(self, rule: str) -> tuple[float, float]:
        """The range of the integers, whatever the rule."""
        return (-128 - self.zero) * self.scale, (127 - self.zero) * self.scale

    def mean(self) -> None:
        """Nothing is known of its channels: no bias is corrected by it."""
        return


def with_given(histograms: dict[str, Seen], activations: dict[str, list]) -> dict[str, Seen | Fixed]:
    """What is known of every tensor. Biases were trained with these integers: no mean corrects them."""
    for histogram in histograms.values():
        histogram.means = None
    return {**histograms, **{name: Fixed(float(scale), int(zero)) for name, (scale, zero) in activations.items()}}


def given_weights(layers: dict[bytes, Layer], scales: dict[str, list[float]]) -> Chosen:
    """The integers that a model's weights are multiples of, by its own scales."""
    chosen: Chosen = {}
    for name, layer in layers.items():
        given = scales.get(name.decode())
        if given is None:
            continue
        scale = np.asarray(given, np.float64)
        by_last = layer.kind == BuiltinOperator.DEPTHWISE_CONV_2D
        shape = [1] * (layer.weights.ndim - 1) + [-1] if by_last else [-1] + [1] * (layer.weights.ndim - 1)
        steps = np.rint(layer.weights.astype(np.float64) / scale.reshape(shape))
        chosen[name] = np.clip(steps, -LIMIT, LIMIT).astype(np.int8), scale.astype(np.float32)
    return chosen


def exactly(data: bytearray, known: Mapping[str, Seen | Fixed]) -> bytearray:
    """Put the given scales into the file, in place: as limits of a range they were rounded."""
    given = {(np.float32(item.scale), item.zero) for item in known.values() if isinstance(item, Fixed)}
    flat = schema.Model.GetRootAs(data)
    graphs = [flat.Subgraphs(index) for index in range(flat.SubgraphsLength())]
    for tensor in (graph.Tensors(index) for graph in graphs for index in range(graph.TensorsLength())):
        coding = tensor.Quantization()
        if tensor.Type() != TensorType.INT8 or coding is None or coding.ScaleLength() != 1:
            continue
        for scale, zero in given:
            if coding.ZeroPoint(0) == zero and abs(coding.Scale(0) - scale) <= 1e-5 * scale:
                coding.ScaleAsNumpy()[:] = scale
    return data


def kept(data: bytes, activations: dict[str, list]) -> tuple[int, list[str]]:
    """How many of the given tensors have their scale in the file, and the names of those that have another."""
    flat = schema.Model.GetRootAs(data)
    same, other = 0, []
    for graph in (flat.Subgraphs(index) for index in range(flat.SubgraphsLength())):
        for tensor in (graph.Tensors(index) for index in range(graph.TensorsLength())):
            given = activations.get((tensor.Name() or b"").decode())
            coding = tensor.Quantization()
            if given is None or tensor.Type() != TensorType.INT8 or coding is None or not coding.ScaleLength():
                continue
            alike = coding.ZeroPoint(0) == given[1] and coding.Scale(0) == np.float32(given[0])
            same += int(alike)
            if not alike:
                other.append(tensor.Name().decode())
    return same, other
