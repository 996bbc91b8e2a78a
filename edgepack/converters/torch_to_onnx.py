# /// script
# requires-python = "==3.11.*"
# dependencies = [
#     "torch==2.13.0",
#     "numpy==2.4.6",
#     "onnx==1.23.2",
#     "onnxruntime==1.31.1",
#     "flatbuffers==25.12.19",
#     "onnxscript==0.7.2",
#     "onnx-ir==1.1.0",
#     "safetensors==0.8.0",
#     "protobuf==7.36.2",
#     "ml-dtypes==0.6.0",
#     "sympy==1.14.0",
#     "networkx==3.6.1",
#     "jinja2==3.1.6",
#     "markupsafe==3.0.4",
#     "mpmath==1.3.0",
#     "fsspec==2026.9.0",
#     "filelock==4.2.11",
#     "packaging==26.3",
#     "setuptools==84.2.1",
#     "typing-extensions==4.16.0",
# ]
# ///
"""Run a PyTorch model, or export it to ONNX. Works under the user's own interpreter too.

Request: ``mode`` (``export`` or ``reference``), ``kind`` (``pt2``, ``torchscript`` or ``factory``), ``source`` (file,
or ``package.module:factory``), ``weights`` (state dict, folder of safetensors, or null), ``inputs`` (list of name,
shape, dtype: the inputs of ``forward`` in order; for ``pt2`` only what its signature leaves open), ``cwd`` and
``pythonpath`` (where a factory's code is found), ``samples`` (tensor folder, for ``reference``). ``export`` writes
``model.onnx``; ``reference`` writes a tensor folder. ``result.json`` holds ``notes``, or ``error`` (kind, id, message,
hint).

``export`` with ``samples`` and ``outputs`` (an empty folder) does the work of ``reference`` beside, in a fork of the
process that has imported torch and opened the model: neither sees what the other did. ``ran`` in the result says
whether it went well; where it didn't, ``reference`` by itself says why.

No pickle is ever trusted: torch.load runs with weights_only=True here whatever its caller says, and nothing is tried
again without it. Only a factory's code is the user's own and runs.
"""

import contextlib
import importlib
import importlib.machinery
import inspect
import io
import json
import os
import re
import shlex
import signal
import site
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

TRACED_OPSET = 17
EXPORTED_OPSET = 18  # torch 2.13 writes 18 and only logs that it couldn't go lower
OLDEST = (2, 6)  # before it, weights_only=True could be broken out of (CVE-2025-32434)
ARCHIVES = "torch.export.pt2_archive._package"
GOOD = 80.0  # dB between a module's outputs and its ONNX form's: float32's rounding; no other exporter can do better
WRAPPED = ("state_dict", "model_state_dict", "model", "net", "module")  # where training scripts put the state dict


class Refused(Exception):
    """What the user is told. ``kind`` is ``model``, ``usage`` or ``tool``."""

    def __init__(self, message: str, hint: str, id: str = "EP301", kind: str = "model") -> None:
        super().__init__(message)
        self.entry = {"kind": kind, "id": id, "message": visible(message), "hint": visible(hint)}


def visible(text: str) -> str:
    """Text with every character that a terminal would act on replaced by its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


try:
    import numpy as np
    import torch
    from torch.utils import _pytree as pytree
except ImportError as missing:
    torch = None
    absent = str(missing)


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    out = Path(request["out"])
    try:
        result = run(request, out)
    except Refused as error:
        result = {"error": error.entry}
    (out / "result.json").write_text(json.dumps(result))


def run(request: dict[str, Any], out: Path) -> dict[str, Any]:
    if torch is None:
        raise Refused(
            f"The interpreter {sys.executable} can't import torch: {absent}.",
            f"Install it there (`{sys.executable} -m pip install torch onnx onnxscript`), or name another.",
            "EP402",
            "tool",
        )
    # One thread per core of the child's own limit: results must not depend on the machine's load.
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    torch.manual_seed(0)
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms() is the same and imports Inductor: 0.8 s
    distrust_pickles()
    warnings.simplefilter("ignore")
    with torch.no_grad():
        source = open_source(request)
        if request["mode"] == "reference":
            reference(source, Path(request["samples"]), out)
            return {"notes": []}
        if not request.get("samples"):
            return {"notes": source.export(out / "model.onnx")}
        beside = fork(lambda: reference(source, Path(request["samples"]), Path(request["outputs"])))
        try:
            notes = source.export(out / "model.onnx")
        except BaseException:
            beside(True)
            raise
        return {"notes": notes, "ran": beside(False)}


def fork(work: Callable[[], None]) -> Callable[[bool], bool]:
    """Start `work` in a copy of this process. Returns a function that ends it (at once when told so) and says whether
    the work was done. A process with threads isn't copied: they would be missing in the copy."""
    if len(list(Path("/proc/self/task").iterdir())) != 1:
        return lambda _: False
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())  # the last words are the exporter's
            work()
            code = 0
        finally:
            os._exit(code)

    def end(now: bool) -> bool:
        if now:
            os.kill(child, signal.SIGKILL)
        return os.waitpid(child, 0)[1] == 0

    return end


def distrust_pickles() -> None:
    """torch.export.load asks torch.load for weights_only=False: say True, whoever asks."""
    load = torch.load

    def careful(*args: Any, **options: Any) -> Any:
        return load(*args, **{**options, "weights_only": True})

    torch.load = careful
    torch.serialization.load = careful
    if ARCHIVES in sys.modules:
        sys.modules[ARCHIVES].pickle = NoPickle
    sys.meta_path.insert(0, Archives)


class NoPickle:
    """What torch's module for .pt2 archives has for ``pickle``."""

    @staticmethod
    def loads(*args: Any) -> Any:
        """Refuse."""
        raise Refused("The archive holds a pickled object.", "Export the model again without it.", "EP309")


class Archives(importlib.machinery.PathFinder):
    """Gives `NoPickle` to that module when it is imported, by whomever: importing it here would take 0.8 s."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        """The module as it is found without this class, but for its ``pickle``."""
        spec = super().find_spec(name, path, target) if name == ARCHIVES else None
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                module.pickle = NoPickle

            spec.loader.exec_module = exec_module
        return spec


class Network:
    """A module whose inputs come from the command line: TorchScript, or what a factory returned."""

    def __init__(self, module: "torch.nn.Module", parameters: list[inspect.Parameter], inputs: list[dict]) -> None:
        self.module = module.eval()
        self.inputs = in_order(inputs, parameters)
        self.parameters = parameters

    def __call__(self, *tensors: "torch.Tensor") -> list[tuple[str, "torch.Tensor"]]:
        """Outputs with their names (empty where there is none)."""
        return list(flatten(self.module(*tensors), ""))

    def export(self, path: Path) -> list[str]:
        """Write an ONNX file; returns notes for the user."""
        examples = tuple(example(entry) for entry in self.inputs)
        try:
            names = [name or f"output_{i}" for i, (name, _) in enumerate(self(*examples))]
        except Refused:
            raise
        except Exception as error:
            wanted = ", ".join(str(p) for p in self.parameters) or "nothing known"
            given = ", ".join(f"{entry['name']} {entry['dtype']} {entry['shape']}" for entry in self.inputs)
            raise Refused(
                f"The model can't run on the inputs given ({given}): {one_line(error)}. Its forward takes: {wanted}.",
                "Give one --input NAME=SHAPE[:DTYPE] for each input of forward, in its order, "
                "such as --input x=1x3x224x224 or --input ids=1x128:int64.",
                "EP305",
            ) from error
        inputs = [entry["name"] for entry in self.inputs]
        names = distinct(names, inputs)
        flat = Flat(self.module)
        tries: list[tuple[str, Callable[[], None]]]
        if isinstance(self.module, torch.jit.ScriptModule):
            # The exporter flattens a scripted module's tuples itself, but can't make dicts, which tracing takes apart.
            tries = [
                ("scripting", lambda: export_traced(self.module, examples, inputs, names, path)),
                ("tracing", lambda: export_traced(torch.jit.trace(flat, examples), examples, inputs, names, path)),
            ]
        else:
            tries = [
                ("tracing", lambda: export_traced(flat, examples, inputs, names, path)),
                ("torch.export", lambda: export_program(flat, examples, inputs, names, path)),
            ]
        return best_that_works(tries, path, examples, lambda: [tensor for _, tensor in self(*examples)])


class Program:
    """A torch.export program: it knows its own inputs and outputs."""

    def __init__(self, program: Any) -> None:
        self.program = program
        self.module = program.module()
        signature = program.graph_signature
        self.taken = [spec.arg for spec in signature.input_specs if spec.kind.name == "USER_INPUT"]
        self.inputs = [arg.name for arg in self.taken if not constant(arg)]

    def __call__(self, *tensors: "torch.Tensor") -> list[tuple[str, "torch.Tensor"]]:
        """Outputs with their names, for inputs in the signature's order."""
        left = list(tensors)
        flat = [arg.value if constant(arg) else left.pop(0) for arg in self.taken]
        args, kwargs = pytree.tree_unflatten(flat, self.program.call_spec.in_spec)
        return list(flatten(self.module(*args, **kwargs), ""))

    def export(self, path: Path) -> list[str]:
        """Write an ONNX file; returns notes for the user."""
        spec = self.program.call_spec.out_spec
        returned = pytree.tree_unflatten([torch.empty(0)] * spec.num_leaves, spec)
        outputs = distinct([name or f"output_{i}" for i, (name, _) in enumerate(flatten(returned, ""))], self.inputs)
        tries: list[tuple[str, Callable[[], None]]] = [
            ("torch.export", lambda: export_program(self.program, (), self.inputs, outputs, path)),
            ("torch.export without names", lambda: export_program(self.program, (), None, None, path)),
        ]
        examples = self.examples()
        if examples is not None:
            flat = Flat(self)
            tries.append(("tracing", lambda: export_traced(flat, examples, self.inputs, outputs, path)))
        return best_that_works(tries, path, examples, lambda: [tensor for _, tensor in self(*(examples or ()))])

    def examples(self) -> tuple["torch.Tensor", ...] | None:
        """What the program was exported with, where the file holds it and it is tensors alone."""
        if self.program.example_inputs is None:
            return None
        leaves = pytree.tree_leaves(self.program.example_inputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return tuple(tensors) if len(leaves) == len(tensors) == len(self.inputs) else None


def constant(arg: Any) -> bool:
    """Whether an input of the signature is a number that was fixed at export."""
    return type(arg).__name__ == "ConstantArgument"


def open_source(request: dict[str, Any]) -> Any:
    name, kind, inputs = request["name"], request["kind"], request["inputs"]
    if kind == "factory":
        module = make(request)
        return Network(module, list(inspect.signature(module.forward).parameters.values()), inputs)
    try:
        if kind == "pt2":
            return Program(torch.export.load(request["source"]))
        module = torch.jit.load(request["source"], map_location="cpu")
    except Refused:
        raise
    except Exception as error:
        raise Refused(
            f"{name} can't be loaded by torch {torch.__version__}: {one_line(error)}.",
            "It is damaged, or was written by another version of torch, or needs custom operators: "
            "try --python PATH with the interpreter that made it.",
            "EP303",
        ) from error
    schema = module.forward.schema if hasattr(module, "forward") else None
    names = [argument.name for argument in schema.arguments][1:] if schema is not None else []
    return Network(module, [inspect.Parameter(n, inspect.Parameter.POSITIONAL_ONLY) for n in names], inputs)


def make(request: dict[str, Any]) -> "torch.nn.Module":
    """Call the user's factory, from the user's folder, and load the weights into what it returns."""
    where, _, attribute = request["source"].partition(":")
    # First for the user's own folder, as for any script; last for what is installed beside edgepack, so that
    # this environment's own packages win.
    sys.path.insert(0, request["cwd"])
    for folder in request["pythonpath"]:
        sys.path.append(folder)
        for listing in sorted(Path(folder).glob("*.pth")):  # editable installs; weights end the same way
            with contextlib.suppress(UnicodeDecodeError):
                site.addpackage(folder, listing.name, None)
    back = Path.cwd()
    os.chdir(request["cwd"])
    try:
        # What the user's code prints is talk.
        with contextlib.redirect_stdout(sys.stderr):
            module = call(where, attribute)
    finally:
        os.chdir(back)
    if not isinstance(module, torch.nn.Module):
        raise Refused(
            f"{request['source']} returned {type(module).__name__}, not a torch.nn.Module.",
            "Give a class or function that returns the model.",
            "EP314",
        )
    module = module.to("cpu")
    if request["weights"]:
        load_weights(module, Path(request["weights"]), request["weights_name"])
    return module


def call(where: str, attribute: str) -> Any:
    place = f"{where}:{attribute}"
    try:
        found = importlib.import_module(where)
    except ModuleNotFoundError as error:
        own = error.name is not None and (where == error.name or where.startswith(error.name + "."))
        what = f"There is no module {error.name!r}" if own else f"Importing {where} failed: {error}"
        raise Refused(
            f"{what} for {place}. Searched: the current folder, and what is installed beside edgepack or in --python.",
            f"Run edgepack in the folder that holds {where.partition('.')[0]}, install what is missing beside "
            "edgepack, or name the interpreter where it works with --python PATH.",
            "EP314",
        ) from error
    except Exception as error:
        raise Refused(
            f"Importing {where} failed: {one_line(error)}.", f"Try `python -c 'import {where}'`.", "EP314"
        ) from error
    factory = getattr(found, attribute, None)
    if factory is None:
        raise Refused(
            f"The module {where} has no {attribute!r}.",
            "It offers: " + ", ".join(sorted(n for n in vars(found) if not n.startswith("_"))[:30]) + ".",
            "EP314",
        )
    if isinstance(factory, torch.nn.Module):
        return factory
    try:
        return factory()
    except Exception as error:
        raise Refused(
            f"Calling {place}() failed: {one_line(error)}.",
            "The factory is called without arguments: write a small function that makes your model, "
            "in a file beside your work, and name that.",
            "EP314",
        ) from error


def load_weights(module: "torch.nn.Module", path: Path, name: str) -> None:
    state = read_weights(path, name)
    for key in WRAPPED:
        if isinstance(state.get(key), Mapping):
            state = state[key]
            break
    tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
    wanted = module.state_dict()
    # DataParallel and Lightning put a prefix before every name.
    for prefix in ("module.", "model.", "net."):
        if tensors and all(k.startswith(prefix) for k in tensors) and not set(tensors) & set(wanted):
            tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    missing = [k for k in wanted if k not in tensors and not k.endswith("num_batches_tracked")]
    # Older releases saved buffers that newer ones make themselves (BERT's position_ids).
    strange = [k for k in tensors if k not in wanted and k not in dict(module.named_buffers())]
    other = [k for k in wanted if k in tensors and tensors[k].shape != wanted[k].shape]
    if missing or strange or other:
        parts = []
        for what, keys in (("lacks", missing), ("has in excess", strange), ("has another shape for", other)):
            if keys:
                parts.append(f"{what} {', '.join(keys[:3])}" + (f" and {len(keys) - 3} more" if len(keys) > 3 else ""))
        raise Refused(
            f"{name} doesn't fit the model ({len(tensors)} tensors for {len(wanted)}): it {'; '.join(parts)}.",
            "Give the weights that belong to this factory, or a factory with the right number of classes.",
            "EP314",
        )
    module.load_state_dict(tensors, strict=False)


def read_weights(path: Path, name: str) -> dict[str, Any]:
    try:
        if path.is_dir():  # the shards of one model
            from safetensors.torch import load_file

            return {key: value for part in sorted(path.iterdir()) for key, value in load_file(str(part)).items()}
        with path.open("rb") as stream:
            safe = stream.read(9)[8:] == b"{"
        if safe:
            from safetensors.torch import load_file

            return load_file(str(path))
        if version() < OLDEST:
            raise Refused(
                f"torch {torch.__version__} can't load pickled weights safely (CVE-2025-32434).",
                "Use torch 2.6 or newer, or weights in safetensors form.",
                "EP309",
            )
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Refused:
        raise
    except Exception as error:
        raise Refused(
            f"The weights {name} can't be loaded: {one_line(error)}.",
            "Save them as a plain state dict: torch.save(model.state_dict(), FILE), or with safetensors.",
            "EP309" if "weights_only" in str(error) or "Unsupported" in str(error) else "EP314",
        ) from error
    if not isinstance(state, Mapping):
        raise Refused(
            f"{name} holds {type(state).__name__}, not a state dict.",
            "Save the weights with torch.save(model.state_dict(), FILE).",
            "EP314",
        )
    return dict(state)


def in_order(inputs: list[dict[str, Any]], parameters: list[inspect.Parameter]) -> list[dict[str, Any]]:
    """The inputs as forward takes them: by name where all names are forward's own, else as they were given."""
    places = {parameter.name: place for place, parameter in enumerate(parameters)}
    if all(entry["name"] in places for entry in inputs):
        inputs = sorted(inputs, key=lambda entry: places[entry["name"]])
        taken = [entry["name"] for entry in inputs]
        skipped = [p.name for p in parameters[: len(inputs)] if p.name not in taken]
        if skipped:
            flags = " ".join(f"--input {shlex.quote(name + '=SHAPE')}" for name in skipped)
            raise Refused(f"No --input for forward's {', '.join(skipped)}.", f"Add {flags}", "EP305")
    return inputs


def example(entry: dict[str, Any]) -> "torch.Tensor":
    """Noise, or zeros for whole numbers, which are often indices."""
    dtype = np.dtype(entry["dtype"])
    generator = np.random.default_rng(0)
    shape = tuple(entry["shape"])
    return torch.from_numpy(np.asarray(generator.random(shape) if dtype.kind == "f" else np.zeros(shape), dtype))


def flatten(value: Any, name: str) -> Iterator[tuple[str, "torch.Tensor"]]:
    """Tensors of nested tuples, lists and dicts in order, each with the name that dict keys and fields give it."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from flatten(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, tuple | list):
        fields = getattr(value, "_fields", None)
        for place, inner in enumerate(value):
            own = fields[place] if fields else f"{name}.{place}" if name else ""
            yield from flatten(inner, own)
    elif value is not None:
        raise Refused(
            f"The model returns a {type(value).__name__}, not only tensors.",
            "Wrap it in a module whose forward returns a tensor, or a tuple or dict of tensors.",
            "EP310",
        )


class Flat(torch.nn.Module if torch is not None else object):  # type: ignore[misc]
    """Returns a module's outputs as one flat tuple; each a tensor of its own, since ONNX outputs can't share one."""

    def __init__(self, module: "torch.nn.Module") -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: "torch.Tensor") -> tuple["torch.Tensor", ...]:
        """Outputs in `flatten`'s order."""
        seen = {id(tensor) for tensor in tensors}
        result = []
        for _, tensor in flatten(self.module(*tensors), ""):
            result.append(tensor.clone() if id(tensor) in seen else tensor)
            seen.add(id(tensor))
        return tuple(result)


def distinct(names: list[str], taken: list[str]) -> list[str]:
    used = set(taken)
    result = []
    for name in names:
        while name in used:
            name += "_out"
        used.add(name)
        result.append(name)
    return result


def export_traced(module: Any, examples: tuple[Any, ...], inputs: list[str], outputs: list[str], path: Path) -> None:
    options = {"dynamo": False} if "dynamo" in inspect.signature(torch.onnx.export).parameters else {}
    torch.onnx.export(
        module, examples, str(path), input_names=inputs, output_names=outputs, opset_version=TRACED_OPSET, **options
    )


def export_program(
    module: Any, examples: tuple[Any, ...], inputs: list[str] | None, outputs: list[str] | None, path: Path
) -> None:
    torch.onnx.export(
        module,
        examples,
        str(path),
        input_names=inputs,
        output_names=outputs,
        opset_version=EXPORTED_OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
    )


def best_that_works(
    tries: list[tuple[str, Callable[[], None]]],
    path: Path,
    examples: "tuple[torch.Tensor, ...] | None",
    run: "Callable[[], list[torch.Tensor]]",
) -> list[str]:
    """Try the exporters in order until one's file gives the outputs that `run` gives for `examples`.

    Each file is run by ONNX Runtime; the first that reaches `GOOD` stays at `path`, else the best. Without ONNX Runtime
    (under the user's interpreter) or examples the first that is written stays. Returns notes for the user.
    """
    reasons: list[str] = []
    best = ("", -np.inf)
    kept = path.with_suffix(".best")
    for how, attempt in tries:
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                attempt()
            figure = agreement(path, examples, run) if examples is not None else None
        except Exception as error:
            reasons.append(f"by {how}: {one_line(error)}")
            path.unlink(missing_ok=True)
            continue
        if figure is None or figure >= GOOD:
            kept.unlink(missing_ok=True)
            return [f"Exported by {how}, because exporting failed {reason}" for reason in reasons]
        reasons.append(f"by {how}: its outputs agree to {figure:.0f} dB only")
        if figure > best[1]:
            best = (how, figure)
            path.replace(kept)
    if best[0]:
        kept.replace(path)
        return [f"Exported by {best[0]}, the best of what was tried ({'; '.join(reasons)})"]
    raise Refused(
        f"torch {torch.__version__} can't export this model to ONNX: {'; '.join(reasons)}.",
        "Replace the part of the model that it names, or export the model yourself and give the .onnx file.",
        "EP301",
    )


def agreement(
    path: Path, examples: "tuple[torch.Tensor, ...]", run: "Callable[[], list[torch.Tensor]]"
) -> float | None:
    """SQNR in dB of the ONNX file's worst output against the module's own, or None where that can't be said."""
    try:
        import onnxruntime
    except ImportError:
        return None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    if len(names) != len(examples):
        return None  # an input without effect was dropped
    feed = {name: tensor.detach().cpu().numpy() for name, tensor in zip(names, examples, strict=True)}
    wanted = [tensor.detach().cpu().numpy() for tensor in run()]
    worst = 200.0
    for a, b in zip(wanted, session.run(None, feed), strict=True):
        if a.shape != b.shape:
            return -200.0
        a, b = np.nan_to_num(a.astype(np.float64)), np.nan_to_num(b.astype(np.float64))
        signal, noise = float((a**2).sum()), float(((a - b) ** 2).sum())
        if noise > 0:
            worst = min(worst, 10 * float(np.log10(signal / noise)) if signal > 0 else -200.0)
    return worst


def reference(source: Any, samples: Path, out: Path) -> None:
    count_inputs = len(list(samples.glob("*.npy")))
    arrays = [np.load(samples / f"{i}.npy", mmap_mode="r") for i in range(count_inputs)]
    collected: list[list[np.ndarray]] = []
    for k in range(len(arrays[0])):
        # A copy: torch wants writable memory, and a model may change its input in place.
        tensors = [torch.from_numpy(np.array(array[k])) for array in arrays]
        outputs = [tensor.detach().cpu().contiguous().numpy().copy() for _, tensor in source(*tensors)]
        collected.append(outputs)
    for i, column in enumerate(zip(*collected, strict=True)):
        np.save(out / f"{i}.npy", np.stack(column))


def version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)


def one_line(error: BaseException) -> str:
    """The innermost reason: torch wraps errors in pages of general advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    text = " ".join(lines[:3]) or type(error).__name__
    return (text[:300] + "..." if len(text) > 300 else text).rstrip(" .")


if __name__ == "__main__":
    main()
