"""Write Keras models with random weights to a folder: ``python keras_zoo.py FOLDER``, by the Python of the converter
``tensorflow_to_onnx``. ``FOLDER/keras.json`` lists them."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import keras
import numpy as np
from keras import applications, layers

SIZES = {
    "MobileNetV2": 96, "EfficientNetB0": 64, "ResNet50": 64, "DenseNet121": 64, "NASNetMobile": 96, "ConvNeXtTiny": 64,
    "MobileNetV3Small": 64, "EfficientNetV2B0": 64, "Xception": 96, "InceptionV3": 96,
}  # fmt: skip


def application(name: str) -> keras.Model:
    size = SIZES[name]
    return getattr(applications, name)(weights=None, input_shape=(size, size, 3), classes=20)


def lstm() -> keras.Model:
    x = keras.Input((30, 12), name="sequence")
    y = layers.Bidirectional(layers.LSTM(16, return_sequences=True))(x)
    return keras.Model(x, layers.Dense(5, activation="softmax", name="class")(layers.GRU(12)(y)))


def text() -> keras.Model:
    x = keras.Input((16,), dtype="int32", name="ids")
    y = layers.Embedding(40, 24)(x)
    y = layers.LayerNormalization()(y + layers.MultiHeadAttention(3, 8)(y, y))
    return keras.Model(x, layers.Dense(4, name="class")(layers.GlobalAveragePooling1D()(y)))


def unet() -> keras.Model:
    x = keras.Input((48, 48, 3), name="image")
    down = [layers.SeparableConv2D(8, 3, padding="same", activation="relu")(x)]
    for width in (16, 24):
        down.append(layers.Conv2D(width, 3, 2, padding="same", activation="swish")(down[-1]))
    y = down.pop()
    for width in (16, 8):
        y = layers.Conv2DTranspose(width, 3, 2, padding="same")(y)
        y = layers.Concatenate()([y, down.pop()])
        y = layers.BatchNormalization()(layers.Conv2D(width, 3, padding="same")(y))
    return keras.Model(x, layers.Conv2D(2, 1, activation="sigmoid", name="mask")(y))


def write(name: str, make, folder: Path, kinds: tuple[str, ...]) -> list[dict]:
    keras.utils.set_random_seed(7)
    random = np.random.default_rng(7)
    entries = []
    model = None
    for kind in kinds:
        path = folder / {"keras": f"{name}.keras", "h5": f"{name}.h5", "saved_model": f"{name}_saved_model"}[kind]
        entries.append({"name": path.name, "kind": kind, "source": str(path), "inputs": {}})
        if path.exists():
            continue
        if model is None:
            model = make()
            for weight in model.weights:  # a scale of one and a mean of zero would hide faults
                value = np.asarray(weight)
                if value.ndim == 1 and value.size > 1 and (value == value[0]).all():
                    around = 0.0 if weight.name in ("bias", "beta", "moving_mean") else 1.0
                    weight.assign(around + 0.1 * random.standard_normal(value.shape).clip(-3, 3))
        model.export(str(path), verbose=False) if kind == "saved_model" else model.save(path)
    return entries


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name in SIZES:
        more = {"MobileNetV2": ("h5",), "EfficientNetB0": ("saved_model",)}.get(name, ())
        entries += write(name, lambda name=name: application(name), folder, ("keras", *more))
    for make in (lstm, text, unet):
        entries += write(f"keras_{make.__name__}", make, folder, ("keras", "saved_model"))
    (folder / "keras.json").write_text(json.dumps(entries, indent=1))


if __name__ == "__main__":
    main()
