"""`edgepack inspect`: what a model file or a bundle holds, without running anything of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgepack import bundle, plan
from edgepack.cache import sha256_file
from edgepack.importers import tflite_file


def inspect(path: Path) -> dict[str, Any]:
    """Facts about a model or a bundle. Raises `UsageError`, `ModelError` or `IntegrityError`."""
    if path.is_dir() and not (path / "saved_model.pb").is_file():
        return _bundle(path)
    importer = plan.find_importer(str(path))
    facts = {
        "kind": importer.name,
        "path": str(path),
        "size": path.stat().st_size if path.is_file() else bundle.tree_size(path),
        "digest": importer.digest(str(path), {}),
    }
    if importer.name == "onnx":
        return {**facts, **_onnx(path)}
    more = {"sha256": sha256_file(path)} if path.is_file() else {}
    return {**facts, **more, **(_tflite(path) if importer.name == "tflite" else {})}


def _bundle(path: Path) -> dict[str, Any]:
    manifest = bundle.open_bundle(path).manifest
    variants = [
        {
            "name": item["name"],
            "input_set": item.get("input_set", ""),
            "cosine": min((m["cosine"] for m in item["verdict"]["metrics"]), default=None),
            "self_test": item["self_test"]["how"],
        }
        for item in manifest["variants"]
    ]
    return {
        "kind": "bundle",
        "path": str(path),
        "name": manifest["name"],
        "target": manifest["target"]["name"],
        "digest": manifest["digest"],
        "size": sum(item["size"] for item in manifest["files"]),
        "files": len(manifest["files"]),
        "inputs": manifest["inputs"],
        "outputs": manifest["outputs"],
        "input_sets": [
            {"name": part["name"], "inputs": part["inputs"], "outputs": part["outputs"]}
            for part in manifest.get("input_sets", ())
        ],
        "variants": variants,
    }


def _tflite(path: Path) -> dict[str, Any]:
    found = tflite_file.read(path)
    return {
        "precision": str(found.precision),
        "inputs": [asdict(tensor.spec) for tensor in found.inputs],
        "outputs": [asdict(tensor.spec) for tensor in found.outputs],
    }


def _onnx(path: Path) -> dict[str, Any]:
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    constants = {tensor.name for tensor in model.graph.initializer}
    return {
        "opset": {item.domain or "ai.onnx": item.version for item in model.opset_import},
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "inputs": [_value(v) for v in model.graph.input if v.name not in constants],
        "outputs": [_value(v) for v in model.graph.output],
        "operators": dict(Counter(node.op_type for node in model.graph.node).most_common()),
    }


def _value(value: Any) -> dict[str, Any]:
    import onnx

    tensor = value.type.tensor_type
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    try:
        dtype = str(onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
    except KeyError:
        dtype = "unknown"
    return {"name": value.name, "dtype": dtype, "shape": shape}


def text(facts: dict[str, Any]) -> str:
    """The facts for people."""
    lines = [f"{key}: {value}" for key, value in facts.items() if not isinstance(value, (list, dict))]
    for key in ("inputs", "outputs"):
        lines += [f"{key[:-1]}: {item['name']!r} {item['dtype']} {item['shape']}" for item in facts.get(key, [])]
    for part in facts.get("input_sets", []):
        lines += [
            f"{key[:-1]}: {item['name']!r} {item['dtype']} {item['shape']}  in the input set {part['name']}"
            for key in ("inputs", "outputs")
            for item in part[key]
        ]
    if facts.get("opset") is not None:
        lines.append("opset: " + ", ".join(f"{k} {v}" for k, v in facts["opset"].items()))
        lines.append("operators: " + ", ".join(f"{k} x{v}" for k, v in facts["operators"].items()))
    for item in facts.get("variants", []):
        lines.append(f"variant: {item['name']}  cosine {item['cosine']:.4f}  self-test: {item['self_test']}")
    return "\n".join(lines)
