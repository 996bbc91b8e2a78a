"""What keeps torch from unpickling anything, whoever asks it to."""

import importlib.machinery
import sys
from typing import Any

import torch
from torch_to_onnx_refusal import Refused

ARCHIVES = "torch.export.pt2_archive._package"


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
