"""TensorFlow, Keras, TFLite and MXNet sources with the real tools, each against its own framework."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from edgepack import converter
from edgepack.errors import ModelError, UsageError
from edgepack.importers.mxnet import MXNetImporter
from edgepack.importers.tensorflow import TensorFlowImporter
from edgepack.importers.tflite import KEPT, TFLiteImporter
from edgepack.importers.torch import TorchImporter
from tests.conftest import ROOT
from tests.integration.test_importers import OPTIONS, Imported

DATA = ROOT / "tests" / "data"
# One Keras model with what goes wrong most: batch normalisation after a depthwise convolution, an integer input,
# a recurrent layer, a dict of outputs, an open axis. The SavedModel has the same function and a second signature.
KERAS = """
import keras, sys, tensorflow as tf
keras.utils.set_random_seed(0)
layers = keras.layers
image = keras.Input((12, 12, 3), name="image")
ids = keras.Input((None,), name="ids", dtype="int32")
x = layers.Conv2D(8, 3, padding="same", activation="relu")(image)
x = layers.DepthwiseConv2D(3, strides=2, padding="same")(x)
x = layers.BatchNormalization(beta_initializer="random_normal", gamma_initializer="random_normal")(x)
x = layers.GlobalAveragePooling2D()(layers.ReLU(6.0)(x))
words = layers.LSTM(8)(layers.Embedding(20, 4)(ids))
scores = layers.Dense(5, activation="softmax")(layers.Concatenate()([x, words]))
model = keras.Model([image, ids], {"scores": scores, "features": x})
model.save(sys.argv[1] + "/model.keras")

class Two(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def double(self, x): return {"y": x * 2 + tf.reduce_max(x)}
    @tf.function(input_signature=[tf.TensorSpec([2, 3], tf.uint8, name="pixels"), tf.TensorSpec([], name="gain")])
    def scale(self, pixels, gain):
        scaled = tf.cast(pixels, tf.float32) * gain
        return {"largest": tf.reduce_max(scaled), "positive": scaled > 1}

class Reads(tf.Module):
    @tf.function(input_signature=[tf.TensorSpec([], tf.string, name="path")])
    def read(self, path): return {"text": tf.io.read_file(path)}
two = Two()
tf.saved_model.save(two, sys.argv[1] + "/two", signatures={"double": two.double, "scale": two.scale})
reads = Reads()
tf.saved_model.save(reads, sys.argv[1] + "/reads", signatures={"read": reads.read})
small = keras.Input((2,))
keras.Model(small, layers.Lambda(lambda t: t * 2, name="twice")(small)).save(sys.argv[1] + "/lambda.h5")
keras.Sequential([keras.Input((4,)), layers.Dense(3)]).save(sys.argv[1] + "/dense.h5")

class Stream(tf.Module):
    def __init__(self, start):
        self.held = tf.Variable(tf.constant(start, shape=[1, 3]), name="held")
        self.weights = tf.constant([[0.5, 0.1, 0.2], [0.0, 0.3, 0.1], [0.2, 0.2, 0.4]])
    @tf.function(input_signature=[tf.TensorSpec([1, 3], tf.float32, name="x")])
    def step(self, x):
        self.held.assign(tf.tanh(tf.matmul(self.held, self.weights) + x))
        return {"y": self.held * 2 + x}
for name, start in (("stream", 0.25), ("uneven", [0.1, 0.2, 0.3])):
    stream = Stream(start)
    made = tf.lite.TFLiteConverter.from_concrete_functions([stream.step.get_concrete_function()], stream)
    made.experimental_enable_resource_variables = True
    open(sys.argv[1] + f"/{name}.tflite", "wb").write(made.convert())
"""
RECURRENT = """
import sys, numpy as np, onnx, onnx2tf
from onnx import helper, numpy_helper
value = lambda name, *shape: helper.make_tensor_value_info(name, 1, shape)
held = [numpy_helper.from_array(np.ones((1, 16, n), np.float32), name) for name, n in (("w", 3), ("r", 4))]
node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=4)
graph = helper.make_graph([node], "g", [value("x", 6, 1, 3)], [value("y", 6, 1, 1, 4)], held)
onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), "model.onnx")
onnx2tf.convert("model.onnx", output_folder_path=sys.argv[1], not_use_onnxsim=True, non_verbose=True)
"""
SPARSE = """
import sys
import numpy as np
from types import SimpleNamespace as Table
sys.path.insert(0, {folder!r})
from tflite_plain import unpacked
random = np.random.default_rng(0)
dense = random.standard_normal((6, 8)) * (random.random((6, 8)) < 0.2)
dense[4] = 0
rows, columns = np.nonzero(dense)
starts = np.searchsorted(rows, range(7))
level = lambda size: Table(format=0, denseSize=size)
compressed = lambda starts, places: Table(
    format=1, arraySegments=Table(values=starts), arrayIndices=Table(values=places), denseSize=0
)
plain = Table(traversalOrder=[0, 1], blockMap=None, dimMetadata=[level(6), compressed(starts, columns)])
assert (unpacked(dense[rows, columns], [6, 8], plain) == dense).all()

blocks = dense.reshape(3, 2, 4, 2).transpose(0, 2, 1, 3)  # of 2 x 2
rows, columns = np.nonzero(blocks.any((2, 3)))
blocked = Table(
    traversalOrder=[0, 1, 2, 3], blockMap=[0, 1],
    dimMetadata=[level(3), compressed(np.searchsorted(rows, range(4)), columns), level(2), level(2)],
)
assert (unpacked(blocks[rows, columns].ravel(), [6, 8], blocked) == dense).all()
"""
MXNET = """
import mxnet as mx, numpy as np, sys
mx.random.seed(0); np.random.seed(0)
x = mx.sym.Convolution(mx.sym.Variable("data"), num_filter=4, kernel=(3, 3), pad=(1, 1), name="c1")
x = mx.sym.LeakyReLU(mx.sym.BatchNorm(x, name="bn", fix_gamma=False), slope=0.1)
x = mx.sym.Pooling(x, kernel=(2, 2), stride=(2, 2), pool_type="max")
x = mx.sym.FullyConnected(mx.sym.Flatten(x), num_hidden=5)
module = mx.mod.Module(mx.sym.SoftmaxOutput(x, name="softmax"))
module.bind([("data", (1, 3, 8, 8))], [("softmax_label", (1,))])
module.init_params(mx.init.Xavier())
module.save_checkpoint(sys.argv[1] + "/tiny", 3)
"""


def made_by(script: str, program: str, folder: Path) -> Path:
    """Run a program in the environment of a converter; `folder` is its argument."""
    done = subprocess.run(
        [converter.environment(script), "-c", program, folder], capture_output=True, text=True, cwd=folder
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_by("tensorflow_to_onnx", KERAS, tmp_path_factory.mktemp("made"))


def test_a_keras_model_keeps_its_names_its_order_and_its_layout(made: Path, tmp_path: Path) -> None:
    found = Imported(TensorFlowImporter(), str(made / "model.keras"), {"ids": (1, 6)}, tmp_path).agrees()
    assert found.inputs == {"image": (1, 12, 12, 3), "ids": (1, 6)}
    assert found.outputs == {"features": (1, 8), "scores": (1, 5)}
    assert [spec.dtype for spec in found.model.inputs] == ["float32", "int32"]
    operators = [node.op_type for node in found.onnx.graph.node]
    assert "Loop" not in operators  # unrolled


def test_an_open_axis_is_asked_for_with_the_flag_to_add(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError) as refused:
        TensorFlowImporter().to_onnx(str(made / "model.keras"), {}, OPTIONS, tmp_path / "out")
    assert "add --input ids=1x128" in refused.value.hint


def test_a_signature_is_asked_for_and_scalars_and_uint8_are_kept(made: Path, tmp_path: Path) -> None:
    source = str(made / "two")
    with pytest.raises(ModelError, match="double, scale") as refused:
        TensorFlowImporter().to_onnx(source, {}, OPTIONS, tmp_path / "out")
    assert "--signature double" in refused.value.hint
    found = Imported(TensorFlowImporter(), source, {}, tmp_path, signature="scale").agrees()
    assert found.inputs == {"gain": (), "pixels": (2, 3)}
    assert {spec.name: spec.dtype for spec in found.model.inputs} == {"gain": "float32", "pixels": "uint8"}
    assert found.outputs == {"largest": (), "positive": (2, 3)}
    assert {spec.name: spec.dtype for spec in found.model.outputs} == {"largest": "float32", "positive": "bool"}


def test_a_saved_model_that_reads_files_is_refused_with_its_node(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="ReadFile") as refused:
        TensorFlowImporter().to_onnx(str(made / "reads"), {}, OPTIONS, tmp_path / "out")
    assert refused.value.id == "EP309"


def test_an_h5_file_is_built_and_a_lambda_in_one_is_refused_without_tensorflow(made: Path, tmp_path: Path) -> None:
    assert Imported(TensorFlowImporter(), str(made / "dense.h5"), {}, tmp_path).outputs == {"dense_1": (1, 3)}
    with pytest.raises(ModelError, match="'twice' is a Lambda"):
        TensorFlowImporter().to_onnx(str(made / "lambda.h5"), {}, OPTIONS, tmp_path / "out")


@pytest.mark.parametrize("name", ["tiny", "tiny_int8"])
def test_a_tflite_file_agrees_with_its_onnx_form_and_is_kept(tmp_path: Path, name: str) -> None:
    source = DATA / f"{name}.tflite"
    found = Imported(TFLiteImporter(), str(source), {}, tmp_path, kept=(KEPT,)).agrees()
    assert found.inputs == {"serving_default_image:0": (1, 16, 16, 3)}
    assert found.model.inputs[0].dtype == ("int8" if "int8" in name else "float32")
    assert ("QuantizeLinear" in found.model.operators) == ("int8" in name)
    assert (found.model.path.parent / KEPT).read_bytes() == source.read_bytes()
    facts = json.loads((found.model.path.parent / "model.json").read_text())
    assert facts["origin"]["precision"] == ("int8" if "int8" in name else "fp32")


def test_other_sizes_than_a_tflite_files_own_are_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fixes its sizes"):
        shapes = {"serving_default_image:0": (2, 16, 16, 3)}
        TFLiteImporter().to_onnx(str(DATA / "tiny.tflite"), shapes, OPTIONS, tmp_path / "out")


def test_what_a_tflite_file_hides_in_variables_becomes_an_input_and_an_output(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The script itself holds both files together, run after run; here ONNX and LiteRT compute the same step."""
    found = Imported(TFLiteImporter(), str(made / "stream.tflite"), {}, tmp_path, kept=(KEPT,)).agrees()
    assert sorted(found.inputs.values()) == sorted(found.outputs.values()) == [(1, 3), (1, 3)]
    [state] = [name for name in found.inputs if name != "x" and not name.startswith("serving")]
    assert f"{state}_next" in found.outputs
    said = " ".join(capsys.readouterr().err.split())
    assert said.count(f"{state!r} (at first all 0.25) and '{state}_next'") == 1


def test_a_state_that_begins_with_values_that_no_flag_could_say_is_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="begins with more than one value") as refused:
        TFLiteImporter().to_onnx(str(made / "uneven.tflite"), {}, OPTIONS, tmp_path / "out")
    assert refused.value.id == "EP310"


def test_a_tflite_file_with_a_recurrent_layer_that_never_forgets_is_refused(tmp_path: Path) -> None:
    source = made_by("onnx_to_tflite", RECURRENT, tmp_path) / "model_float32.tflite"
    with pytest.raises(ModelError, match="remember the last run") as refused:
        TFLiteImporter().to_onnx(str(source), {}, OPTIONS, tmp_path / "out")
    assert refused.value.id == "EP310" and "Keras" in refused.value.hint


def test_sparse_weights_are_unpacked_to_what_they_are(tmp_path: Path) -> None:
    made_by("tflite_plain", SPARSE.format(folder=str(converter.FOLDER)), tmp_path)


def test_an_mxnet_symbol_loses_its_loss_layer_and_nothing_else(tmp_path: Path) -> None:
    folder = made_by("mxnet_to_onnx", MXNET, tmp_path)
    source = str(folder / "tiny-symbol.json")
    with pytest.raises(ModelError) as refused:
        MXNetImporter().to_onnx(source, {}, OPTIONS, tmp_path / "out")
    assert "add --input data=1x3x224x224" in refused.value.hint
    found = Imported(MXNetImporter(), source, {"data": (2, 3, 8, 8)}, tmp_path).agrees()
    assert found.inputs == {"data": (2, 3, 8, 8)}
    assert found.outputs == {"softmax_output": (2, 5)}


def test_a_quantized_tflite_file_becomes_a_bundle_with_the_file_itself(edgepack, tmp_path: Path) -> None:
    source = DATA / "tiny_int8.tflite"
    called = edgepack("build", source, "--target", "host", "--engine", "tflite", "-o", tmp_path, "--json")
    assert called.code == 1, called.err  # fp32 and fp16 of a named engine can't be built
    assert called.outcomes["tflite-int8"]["status"] == "built"
    bundle = tmp_path / "tiny_int8-host.edgepack"
    assert (bundle / "variants" / "tflite-int8" / "model.tflite").read_bytes() == source.read_bytes()


def test_an_exporter_of_torch_whose_file_disagrees_with_the_module_loses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n\nexport = torch.onnx.export\n\n\n"
        "def worse(module, *args, dynamo=True, **options):\n"
        "    return export(module if dynamo else torch.nn.Tanh(), *args, dynamo=dynamo, **options)\n\n\n"
        "torch.onnx.export = worse\nNet = torch.nn.Sigmoid\n"
    )
    monkeypatch.chdir(tmp_path)
    found = Imported(TorchImporter(), "net:Net", {"x": (1, 4)}, tmp_path).agrees()
    assert found.model.operators == ("Sigmoid",)
    assert "because exporting failed by tracing: its outputs agree to" in capfd.readouterr().err
