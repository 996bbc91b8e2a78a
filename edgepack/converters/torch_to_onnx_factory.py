"""Run a user's factory, and load weights into the module that it returns."""

import contextlib
import importlib
import os
import site
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch_to_onnx_refusal import Refused, one_line

OLDEST = (2, 6)  # before it, weights_only=True could be broken out of (CVE-2025-32434)
WRAPPED = ("state_dict", "model_state_dict", "model", "net", "module")  # where training scripts put the state dict


def make(request: dict[str, Any]) -> torch.nn.Module:
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


def load_weights(module: torch.nn.Module, path: Path, name: str) -> None:
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


def version() -> tuple[int, int]:
    major, minor = torch.__version__.split(".")[:2]
    return int(major), int(minor)
