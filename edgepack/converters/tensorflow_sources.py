"""The kinds of TensorFlow sources: a Keras file, or a SavedModel, as a function of tensors at fixed sizes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
from surface import Refused, distinct, fix, one_line, shown
from tf2onnx_mends import OPSET, add_missing, fold_scales, hold, refuse_leftovers, rename, sort, unconvertible

UNROLLED = 256  # steps; a longer recurrent layer stays a Loop
# Operators that run Python or reach the file system when the graph runs.
REACHING_OUT = ("PyFunc", "PyFuncStateless", "EagerPyFunc", "ReadFile", "WriteFile", "MatchingFiles", "LoadDataset",
                "ReaderReadV2", "WholeFileReaderV2", "DebugIdentityV2", "TfLiteSubgraphExecute")  # fmt: skip


class Traced:
    """A model as a function of tensors at fixed sizes.

    Subclasses set ``call`` (a list of tensors -> a list of tensors), ``inputs`` (name and TensorSpec each, with open
    axes) and ``outputs`` (names).
    """

    inputs: list[tuple[str, Any]]
    outputs: list[str]
    call: Callable[[list[Any]], list[Any]]

    def __init__(self, request: dict[str, Any]) -> None:
        self.name, self.notes = request["name"], []

    def fix(self, shapes: dict[str, list[int]]) -> None:
        """Make ``function``, for the sizes given."""
        import tensorflow as tf

        axes = [(name, None if spec.shape.rank is None else spec.shape.as_list()) for name, spec in self.inputs]
        fixed = fix(axes, shapes)
        self.specs = [
            tf.TensorSpec(fixed[name], spec.dtype, name=f"edgepack_in_{i}")
            for i, (name, spec) in enumerate(self.inputs)
        ]

        def flat(*tensors: Any) -> list[Any]:
            return [tf.identity(tensor, f"edgepack_out_{i}") for i, tensor in enumerate(self.call(list(tensors)))]

        self.function = tf.function(flat, input_signature=self.specs)
        try:
            self.traced = self.function.get_concrete_function()
        except Exception as error:
            said = ", ".join(f"{name} {spec.dtype.name} {shown(fixed[name])}" for name, spec in self.inputs)
            raise Refused(
                f"{self.name} can't run on the inputs given ({said}): {one_line(error)}.",
                "Check --input against what the model was trained for.",
                "EP305",
            ) from error

    def export(self) -> onnx.ModelProto:
        """The ONNX model, with the source's names at its surface."""
        import tf2onnx

        add_missing()
        try:
            made, _ = tf2onnx.convert.from_function(self.function, input_signature=self.specs, opset=OPSET)
        except Exception as error:
            raise unconvertible(self.name, error) from error
        refuse_leftovers(made, self.name)
        hold(made.graph, {inner.name: value for value, inner in self.traced.graph.captures})
        fold_scales(made.graph)
        inputs = [name for name, _ in self.inputs]
        renamed = {f"edgepack_in_{i}": name for i, name in enumerate(inputs)}
        kept = [renamed[value.name.partition(":")[0]] for value in made.graph.input]
        for name in inputs:
            if name not in kept:
                self.notes.append(f"The input {name!r} has no effect on the outputs; it is left out.")
        names = dict(zip((value.name for value in made.graph.input), kept, strict=True))
        names |= dict(zip((value.name for value in made.graph.output), self.outputs, strict=True))
        rename(made, names)
        sort(made.graph.input, inputs)
        return made


class Keras(Traced):
    """A ``.keras`` or ``.h5`` file."""

    def __init__(self, request: dict[str, Any]) -> None:
        super().__init__(request)
        import keras
        import tensorflow as tf

        if request["mode"] == "export":
            without_xla(tf)
        try:
            model = keras.models.load_model(request["source"], compile=False, safe_mode=True)
        except Exception as error:
            raise Refused(
                f"{self.name} can't be loaded by Keras {keras.__version__}: {one_line(error)}.",
                "If it has layers of your own, or was written by another version: load it where it was made, call "
                "model.export('FOLDER'), and build from that folder (a SavedModel holds the graph itself, no code).",
                "EP303",
            ) from error
        if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
            raise Refused(
                f"{self.name} has no inputs of its own: the model was saved before it was built.",
                "Call it once on real data before saving it, or give it a keras.Input.",
                "EP305",
            )
        for layer in model._flatten_layers():
            if isinstance(layer, keras.layers.RNN):
                layer.unroll = True
        structure = structure_of(model, "inputs")
        self.inputs = [
            (name, tf.TensorSpec(tensor.shape, tensor.dtype))
            for name, tensor in zip(tensor_names(model.inputs, structure), model.inputs, strict=True)
        ]
        self.outputs = distinct(
            tensor_names(model.outputs, structure_of(model, "outputs")), [name for name, _ in self.inputs]
        )

        def call(tensors: list[Any]) -> list[Any]:
            return keras.tree.flatten(model(keras.tree.pack_sequence_as(structure, tensors), training=False))

        self.call = call
        self.fix(request["shapes"])
        long = [spec for spec in self.specs if len(spec.shape) > 1 and spec.shape[1] > UNROLLED]
        if long and any(isinstance(layer, keras.layers.RNN) for layer in model._flatten_layers()):
            for layer in model._flatten_layers():
                if isinstance(layer, keras.layers.RNN):
                    layer.unroll = False
            self.fix(request["shapes"])


def structure_of(model: Any, side: str) -> Any:
    """What the model takes or returns: a tensor, or a list or dict of them."""
    tensors = getattr(model, side)
    try:
        return getattr(model, side.removesuffix("s"))
    except AttributeError:  # a Sequential from an .h5 file
        return tensors[0] if len(tensors) == 1 else tensors


def without_xla(tf: Any) -> None:
    """Keras has XLA compile grouped convolutions, into calls that can't be taken apart again. For a graph that is only
    looked at, nothing needs to be compiled."""
    function = tf.function

    def plain(*args: Any, jit_compile: bool | None = None, **options: Any) -> Any:
        return function(*args, **options)

    tf.function = plain


def tensor_names(tensors: list[Any], structure: Any) -> list[str]:
    """Keys where the model takes or returns a dict, else the names of the layers that make the tensors."""
    if isinstance(structure, dict) and len(structure) == len(tensors):
        return [str(key) for key in sorted(structure)]
    return distinct([tensor._keras_history.operation.name for tensor in tensors], [])


class SavedModel(Traced):
    """A folder with ``saved_model.pb``."""

    def __init__(self, request: dict[str, Any]) -> None:
        super().__init__(request)
        import tensorflow as tf

        refuse_reaching_out(Path(request["source"]) / "saved_model.pb", self.name)
        try:
            self.loaded = tf.saved_model.load(request["source"])  # kept: the signature doesn't hold its variables
        except Exception as error:
            raise Refused(
                f"{self.name} can't be loaded by TensorFlow {tf.__version__}: {one_line(error)}.",
                "It is damaged or incomplete (it needs saved_model.pb and the folder variables), or has operators of "
                "another library. Export it again.",
                "EP303",
            ) from error
        signature = self.choose(dict(self.loaded.signatures), request["signature"])
        given = signature.structured_input_signature[1]
        # Sorted: the file keeps both as maps, which come in another order in every process.
        self.inputs = sorted(given.items())
        returned = sorted(signature.structured_outputs)
        self.outputs = distinct(returned, [name for name, _ in self.inputs])

        def call(tensors: list[Any]) -> list[Any]:
            made = signature(**{name: tensor for (name, _), tensor in zip(self.inputs, tensors, strict=True)})
            return [made[name] for name in returned]

        self.call = call
        self.fix(request["shapes"])

    def choose(self, signatures: dict[str, Any], wanted: str | None) -> Any:
        """The signature to build."""
        listed = ", ".join(sorted(signatures)) or "none"
        if wanted is not None and wanted not in signatures:
            raise Refused(f"{self.name} has no signature {wanted!r}.", f"Its signatures: {listed}.", "EP211", "usage")
        if not signatures:
            raise Refused(
                f"{self.name} has no signatures: nothing says what it takes and returns.",
                "Save it with one: tf.saved_model.save(model, FOLDER, signatures=...), or model.export(FOLDER).",
                "EP305",
            )
        default = "serving_default" if "serving_default" in signatures else None
        name = wanted or default or (next(iter(signatures)) if len(signatures) == 1 else None)
        if name is None:
            flag = f"--signature {sorted(signatures)[0]}"
            raise Refused(
                f"{self.name} has several signatures: {listed}.", f"Say which, for example: add {flag}", "EP305"
            )
        # Keras writes the same function twice, as serve and as serving_default.
        if wanted is None and len(set(signatures) - {"serve"}) > 1:
            self.notes.append(f"Of the signatures {listed}, {name} is built (--signature NAME chooses another).")
        return signatures[name]


def refuse_reaching_out(path: Path, name: str) -> None:
    """Refuse graphs with operators that run Python, or that read and write files."""
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel()
    try:
        saved.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise Refused(
            f"{name} is cut off or damaged: saved_model.pb is not a whole SavedModel ({one_line(error)}).",
            "Copy or export it again.",
            "EP303",
        ) from error
    for meta in saved.meta_graphs:
        for nodes in (meta.graph_def.node, *(function.node_def for function in meta.graph_def.library.function)):
            for node in nodes:
                if node.op in REACHING_OUT:
                    raise Refused(
                        f"{name} is refused: its node {node.name!r} is {node.op}, which reaches out of the graph "
                        "(it runs Python, or reads or writes files).",
                        "Do that part in your own program, and export the model without it.",
                        "EP309",
                    )
