"""The kinds of PyTorch sources: what each takes and returns, and which exporters are tried on it."""

import inspect
import shlex
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree
from torch_to_onnx_exporting import EXPORTED_OPSET, TRACED_OPSET, Try, best_that_works, export_program, export_traced
from torch_to_onnx_factory import make
from torch_to_onnx_refusal import Refused, one_line


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


class Network:
    """A module whose inputs come from the command line: TorchScript, or what a factory returned."""

    def __init__(self, module: torch.nn.Module, parameters: list[inspect.Parameter], inputs: list[dict]) -> None:
        self.module = module.eval()
        self.inputs = in_order(inputs, parameters)
        self.parameters = parameters

    def __call__(self, *tensors: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
        """Outputs with their names (empty where there is none)."""
        return list(flatten(self.module(*tensors), ""))

    def export(self, path: Path) -> list[str]:
        """Write an ONNX file; returns notes for the user."""
        examples = tuple(example(entry) for entry in self.inputs)
        try:
            ran = self(*examples)  # before any exporter has touched the module
            names = [name or f"output_{i}" for i, (name, _) in enumerate(ran)]
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
        flat = Flat(self.module).eval()  # or the exporter puts all of it into training mode when it is done
        if isinstance(self.module, torch.jit.ScriptModule):
            # The exporter flattens a scripted module's tuples itself, but can't make dicts, which tracing takes apart.
            tries = [
                Try("scripting", TRACED_OPSET, lambda: export_traced(self.module, examples, inputs, names, path)),
                Try(
                    "tracing",
                    TRACED_OPSET,
                    lambda: export_traced(torch.jit.trace(flat, examples), examples, inputs, names, path),
                ),
            ]
        else:
            tries = [
                Try("tracing", TRACED_OPSET, lambda: export_traced(flat, examples, inputs, names, path)),
                Try("torch.export", EXPORTED_OPSET, lambda: export_program(flat, examples, inputs, names, path)),
            ]
        return best_that_works(tries, path, examples, [tensor for _, tensor in ran])


class Program:
    """A torch.export program: it knows its own inputs and outputs."""

    def __init__(self, program: Any) -> None:
        self.program = program
        self.module = program.module()
        signature = program.graph_signature
        self.taken = [spec.arg for spec in signature.input_specs if spec.kind.name == "USER_INPUT"]
        self.inputs = [arg.name for arg in self.taken if not constant(arg)]

    def __call__(self, *tensors: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
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
        tries = [
            Try(how, EXPORTED_OPSET, partial(export_program, self.program, (), *names, path))
            for how, names in (("torch.export", (self.inputs, outputs)), ("torch.export without names", (None, None)))
        ]
        examples = self.examples()
        wanted = [] if examples is None else [tensor for _, tensor in self(*examples)]
        if examples is not None:
            flat = Flat(self).eval()
            write = partial(export_traced, flat, examples, self.inputs, outputs, path)
            tries.append(Try("tracing", TRACED_OPSET, write))
        return best_that_works(tries, path, examples, wanted)

    def examples(self) -> tuple[torch.Tensor, ...] | None:
        """What the program was exported with, where the file holds it and it is tensors alone."""
        if self.program.example_inputs is None:
            return None
        leaves = pytree.tree_leaves(self.program.example_inputs)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return tuple(tensors) if len(leaves) == len(tensors) == len(self.inputs) else None


def constant(arg: Any) -> bool:
    """Whether an input of the signature is a number that was fixed at export."""
    return type(arg).__name__ == "ConstantArgument"


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


def example(entry: dict[str, Any]) -> torch.Tensor:
    """Noise, or zeros for whole numbers, which are often indices."""
    dtype = np.dtype(entry["dtype"])
    generator = np.random.default_rng(0)
    shape = tuple(entry["shape"])
    return torch.from_numpy(np.asarray(generator.random(shape) if dtype.kind == "f" else np.zeros(shape), dtype))


def flatten(value: Any, name: str) -> Iterator[tuple[str, torch.Tensor]]:
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


class Flat(torch.nn.Module):
    """Returns a module's outputs as one flat tuple; each a tensor of its own, since ONNX outputs can't share one."""

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
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
