"""Activations that ncnn computes inside the layer before them: `Writer`'s layers with fewer of them."""

from ncnn_files import Layer

WEIGHTED = ("Convolution", "Deconvolution", "InnerProduct")  # and their deep and flat kin
KIND, NUMBERS = "9", "-23310"


def fused(layers: list[Layer]) -> list[Layer]:
    """Convolutions and products with the activation that alone reads them; x * sigmoid(x) as one layer."""
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        for name in layer.bottoms:
            readers.setdefault(name, []).append(layer)
    gone: set[int] = set()
    for layer in layers:
        if id(layer) in gone or len(layer.tops) != 1:
            continue
        after = readers.get(layer.tops[0], [])
        if layer.type == "Sigmoid" and len(after) == 1 and _is_swish(layer, after[0]):
            layer.type, layer.tops = "Swish", after[0].tops
            gone.add(id(after[0]))
        elif layer.type.startswith(WEIGHTED) and KIND not in layer.params and len(after) == 1:
            found = _activation(after[0])
            if found is not None:
                layer.params |= found
                layer.tops = after[0].tops
                gone.add(id(after[0]))
    return [layer for layer in layers if id(layer) not in gone]


def _is_swish(gate: Layer, product: Layer) -> bool:
    """Whether a layer multiplies a sigmoid with what that took."""
    plain = product.type == "BinaryOp" and product.params == {"0": "2"}
    return plain and sorted(product.bottoms) == sorted([gate.bottoms[0], gate.tops[0]])


def _activation(layer: Layer) -> dict[str, str] | None:
    """An activation as parameters of the layer before it."""
    get = layer.params.get
    if layer.type == "ReLU":
        slope = float(get("0", "0"))
        return {KIND: "1"} if slope == 0.0 else {KIND: "2", NUMBERS: f"1,{get('0')}"}
    if layer.type == "Clip":
        return {KIND: "3", NUMBERS: f"2,{get('0')},{get('1')}"}
    if layer.type in ("Sigmoid", "Mish"):
        return {KIND: "4" if layer.type == "Sigmoid" else "5"}
    if layer.type == "HardSwish":
        return {KIND: "6", NUMBERS: f"2,{get('0')},{get('1')}"}
    return None
