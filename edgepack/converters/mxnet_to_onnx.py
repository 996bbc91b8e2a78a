# /// script
# requires-python = "==3.11.*"
# dependencies = [
#     "mxnet==1.9.1",
#     "numpy==1.23.5",
#     "onnx==1.17.0",
#     "protobuf==5.29.6",
#     "graphviz==0.8.4",
#     "requests==2.34.2",
# ]
# ///
"""Run an MXNet symbol with its parameters, or export it to ONNX with MXNet's own exporter.

MXNet is archived: 1.9.1 is its last release. It works with exactly these versions of numpy and onnx.

Request: ``mode`` (``export`` or ``reference``), ``symbol`` and ``params`` (files), ``name`` (what to call the symbol in
messages), ``inputs`` ({name: shape} from the command line or the model) and ``dtypes`` ({name: numpy name}); for
``reference`` also ``order`` (input names in the order of the tensor folder) and ``samples``. ``export`` writes
``model.onnx``; ``reference`` a tensor folder. ``result.json`` holds ``notes``, or ``error`` (kind, id, message, hint).
"""

import contextlib
import json
import logging
import os
import sys
from pathlib import Path
from typing import Any

os.environ["MXNET_ENGINE_TYPE"] = "NaiveEngine"  # one operator after another: the same numbers every time
os.environ["MXNET_SUBGRAPH_BACKEND"] = "NONE"

import mxnet as mx
import numpy as np
import onnx
import onnx.defs

sys.path.insert(0, str(Path(__file__).parent))
from surface import Refused, fix, one_line

OPSET = 13  # what the exporter's translations are written for; it would claim the newest that onnx knows
# What a loss layer computes when it doesn't train, and its second input is not used.
LOSSES = {
    "SoftmaxOutput": "softmax",
    "LogisticRegressionOutput": "sigmoid",
    "LinearRegressionOutput": "_copy",
    "MAERegressionOutput": "_copy",
    "SVMOutput": "_copy",
}


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out = Path(request["out"])
    logging.disable(logging.CRITICAL)
    try:
        model = Network(request)
        if request["mode"] == "export":
            model.export(out / "model.onnx")
        else:
            model.reference(request["order"], Path(request["samples"]), out)
        result: dict[str, Any] = {"notes": []}
    except Refused as error:
        result = {"error": error.entry}
    (out / "result.json").write_text(json.dumps(result))


class Network:
    """A symbol with its parameters, at fixed sizes."""

    def __init__(self, request: dict[str, Any]) -> None:
        self.name = request["name"]
        try:
            self.symbol = mx.sym.load(request["symbol"])
            stored = mx.nd.load(request["params"])
        except Exception as error:
            raise Refused(
                f"{self.name} can't be loaded by MXNet {mx.__version__}: {one_line(mx_line(error))}.",
                "It is damaged, or needs operators that MXNet itself doesn't have.",
                "EP303",
            ) from error
        if not isinstance(stored, dict):
            raise Refused(
                f"The parameters of {self.name} have no names.", "Save them with save_checkpoint or export.", "EP303"
            )
        # save_checkpoint and export write arg:NAME and aux:NAME; save_parameters plain names.
        plain = {key.partition(":")[2] or key: value for key, value in stored.items()}
        auxiliary = set(self.symbol.list_auxiliary_states())
        self.arguments = {k: v for k, v in plain.items() if k not in auxiliary}
        self.auxiliary = {k: v for k, v in plain.items() if k in auxiliary}
        self.bare = self.without_losses()
        taken = [name for name in self.bare.list_arguments() if name not in self.arguments]
        lost = sorted(auxiliary - set(self.auxiliary))
        # A weight without numbers looks like an input; what the user names is one.
        weights = [
            n for n in taken if n not in request["inputs"] and n.endswith(("_weight", "_bias", "_gamma", "_beta"))
        ]
        if lost or weights:
            missing = [*weights, *lost]
            more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
            raise Refused(
                f"The parameters of {self.name} lack {', '.join(map(repr, missing[:5]))}{more}.",
                "Give the .params file that was saved with this symbol (--weights FILE).",
                "EP314",
            )
        self.shapes = {
            k: tuple(v) for k, v in fix([(n, None) for n in taken], request["inputs"], "1x3x224x224").items()
        }
        self.dtypes = {n: np.dtype(request["dtypes"].get(n, "float32")).type for n in taken}
        self.bind()

    def without_losses(self) -> mx.sym.Symbol:
        """The symbol with loss layers replaced by what they compute, and so without inputs for labels."""
        graph = json.loads(self.symbol.tojson())
        for node in graph["nodes"]:
            if node["op"] in LOSSES:
                across = node.get("attrs", {}).get("multi_output", "False") in ("True", "1")
                node["op"] = LOSSES[node["op"]]
                node["attrs"] = {"axis": "1" if across else "-1"} if node["op"] == "softmax" else {}
                node["inputs"] = node["inputs"][:1]
        return mx.sym.load_json(json.dumps(graph))

    def bind(self) -> None:
        """Make the executor, for the sizes given."""
        said = ", ".join(f"{name} {list(shape)}" for name, shape in self.shapes.items())
        try:
            self.executor = self.symbol.simple_bind(mx.cpu(), grad_req="null", type_dict=self.dtypes, **self.shapes)
            self.executor.copy_params_from(self.arguments, self.auxiliary, allow_extra_params=True)
        except Exception as error:
            raise Refused(
                f"{self.name} can't run on the inputs given ({said}): {one_line(mx_line(error))}.",
                "Check --input against what the model was trained for.",
                "EP305",
            ) from error

    def export(self, path: Path) -> None:
        """Write an ONNX file with the symbol's own names for inputs and outputs."""
        params = {**self.arguments, **self.auxiliary}
        onnx.defs.onnx_opset_version = lambda: OPSET
        try:
            with contextlib.redirect_stdout(sys.stderr):
                mx.onnx.export_model(
                    self.bare, params, list(self.shapes.values()), list(self.dtypes.values()), str(path)
                )
        except Exception as error:
            raise Refused(
                f"MXNet {mx.__version__} can't export {self.name} to ONNX: {one_line(mx_line(error))}.",
                "Replace that operator in the model, or export it to ONNX yourself and give the .onnx file.",
                "EP308",
            ) from error
        model = onnx.load(path)
        held = {tensor.name for tensor in model.graph.initializer}
        inputs = [value for value in model.graph.input if value.name not in held]  # weights are listed there too
        del model.graph.input[:]
        model.graph.input.extend(inputs)
        names = dict(zip((value.name for value in model.graph.output), self.symbol.list_outputs(), strict=True))
        for value in model.graph.output:
            value.name = names[value.name]
        for node in model.graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]
        path.write_bytes(model.SerializeToString(deterministic=True))

    def reference(self, order: list[str], samples: Path, out: Path) -> None:
        """Run the symbol on each sample."""
        arrays = {name: np.load(samples / f"{i}.npy", mmap_mode="r") for i, name in enumerate(order)}
        collected: list[list[np.ndarray]] = []
        for k in range(len(next(iter(arrays.values())))):
            feed = {name: mx.nd.array(np.array(array[k]), dtype=array.dtype) for name, array in arrays.items()}
            self.executor.forward(is_train=False, **feed)
            collected.append([output.asnumpy() for output in self.executor.outputs])
        for i, column in enumerate(zip(*collected, strict=True)):
            np.save(out / f"{i}.npy", np.stack(column))


def mx_line(error: BaseException) -> str:
    """MXNet's C++ errors end in a stack trace; the reason is in the line that says so, or the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip() and not line.startswith("Stack trace")]
    said = [line for line in lines if "Error in operator" in line or "Check failed" in line or "Error:" in line]
    return (said or lines or [type(error).__name__])[-1 if said else 0]


if __name__ == "__main__":
    main()
