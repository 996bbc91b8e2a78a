"""Bundles: written whole, checked to the byte, never leaving their folder."""

import json
from pathlib import Path

import pytest

from edgepack import bundle
from edgepack.cache import sha256_text
from edgepack.errors import IntegrityError, UsageError
from edgepack.types import Artifact, Binding, Bound, Preprocess, TensorSpec

FACTS = {"name": "m", "inputs": [], "outputs": [], "variants": [{"name": "ncnn-fp32"}]}


def make(folder: Path) -> Path:
    with bundle.replacing(folder) as scratch:
        (scratch / "bin").mkdir()
        (scratch / "bin" / "edgepack-ncnn").write_bytes(b"\x7fELF")
        (scratch / "variants" / "ncnn-fp32").mkdir(parents=True)
        (scratch / "variants" / "ncnn-fp32" / "model.bin").write_bytes(b"weights")
        bundle.write_manifest(scratch, FACTS)
    return folder


def rewrite(folder: Path, change) -> None:
    """Change the manifest and give it a digest that fits again, as an attacker would."""
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["digest"]
    change(manifest)
    manifest["digest"] = sha256_text(bundle.canonical(manifest))
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_bundle_opens_and_lists_its_variants(tmp_path: Path) -> None:
    opened = bundle.open_bundle(make(tmp_path / "m.edgepack"))

    assert opened.variant("ncnn-fp32").is_dir()
    with pytest.raises(UsageError, match="no variant 'tflite-int8'"):
        opened.variant("tflite-int8")


def test_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    one, two = make(tmp_path / "a.edgepack"), make(tmp_path / "b.edgepack")

    assert (one / "manifest.json").read_bytes() == (two / "manifest.json").read_bytes()


@pytest.mark.parametrize("damage", ["flip", "remove", "add", "link"])
def test_every_change_of_a_file_is_found(tmp_path: Path, damage: str) -> None:
    folder = make(tmp_path / "m.edgepack")
    file = folder / "variants" / "ncnn-fp32" / "model.bin"
    if damage == "flip":
        file.write_bytes(b"weightz")
    elif damage == "remove":
        file.unlink()
    elif damage == "add":
        (folder / "extra").write_text("x")
    else:
        content = file.read_bytes()
        (tmp_path / "outside").write_bytes(content)
        file.unlink()
        file.symlink_to(tmp_path / "outside")

    with pytest.raises(IntegrityError) as error:
        bundle.open_bundle(folder)
    assert error.value.exit_code == 8


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "a/../../outside", "a\\b", "nul\0"])
def test_a_manifest_that_names_a_path_outside_is_refused(tmp_path: Path, path: str) -> None:
    folder = make(tmp_path / "m.edgepack")
    (tmp_path / "outside").write_text("x")
    rewrite(folder, lambda m: m["files"][0].update(path=path))

    with pytest.raises(IntegrityError, match="leaves the bundle"):
        bundle.open_bundle(folder)


def test_a_changed_manifest_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "m.edgepack")
    text = (folder / "manifest.json").read_text().replace('"name": "m"', '"name": "n"')
    (folder / "manifest.json").write_text(text)

    with pytest.raises(IntegrityError, match="changed"):
        bundle.open_bundle(folder)


def test_an_earlier_bundle_stays_when_the_new_one_fails(tmp_path: Path) -> None:
    folder = make(tmp_path / "m.edgepack")

    with pytest.raises(RuntimeError), bundle.replacing(folder) as scratch:
        (scratch / "half").write_text("half")
        raise RuntimeError

    assert bundle.open_bundle(folder).manifest["name"] == "m"
    assert [p.name for p in tmp_path.iterdir()] == ["m.edgepack"]


def test_names_from_the_model_are_hex_in_the_descriptor(tmp_path: Path) -> None:
    name = 'x");system("id");//\n*/ =hex:'
    spec = TensorSpec(name=name, dtype="float32", shape=(1, 3))
    binding = Binding(name="in0", dtype="int8", shape=(3,), perm=(0, 1), scale=0.5, zero_point=-3)
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "m.bin").write_bytes(b"x")
    artifact = Artifact(folder=tmp_path / "src", files=("m.bin",), inputs=(binding,), outputs=(binding,))

    bundle.write_variant(
        tmp_path / "v", artifact, engine="ncnn", engine_version="1", precision="int8",
        bound=Bound(cosine=0.95, sqnr_db=8.0), inputs=(spec,), outputs=(spec,),
    )  # fmt: skip

    text = (tmp_path / "v" / "variant.txt").read_text()
    assert text.splitlines()[4] == (
        f"input name=hex:{name.encode().hex()} dtype=float32 shape=1,3 engine_name=hex:696e30 "
        "engine_dtype=int8 engine_shape=3 perm=0,1 scale=0.5 zero_point=-3"
    )
    assert "system" not in text and "preprocess" not in text


def test_what_was_declared_for_an_input_is_in_the_descriptor_in_float32(tmp_path: Path) -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=(1, 3))
    binding = Binding(name="x", dtype="float32", shape=(1, 3), perm=(0, 1))
    (tmp_path / "m.bin").write_bytes(b"x")
    artifact = Artifact(folder=tmp_path, files=("m.bin",), inputs=(binding,) * 3, outputs=(binding,))
    whole = Preprocess(
        layout="NHWC", color="BGR", resize=(640, 320), fit="inside", method="nearest", crop=(9, 8), pad=(11, 10),
        pad_value=(114.0,), pad_place="top_left", mean=(0.1, 116.28, 1e-20), std=(1 / 3,),
    )  # fmt: skip

    bundle.write_variant(
        tmp_path / "v", artifact, engine="ncnn", engine_version="1", precision="fp32", bound=Bound(cosine=0.95),
        inputs=(spec,) * 3, outputs=(spec,), preprocess=(whole, None, Preprocess(resize=256)),
    )  # fmt: skip

    lines = (tmp_path / "v" / "variant.txt").read_text().splitlines()
    assert [line for line in lines if line.startswith("preprocess")] == [
        "preprocess input=0 layout=NHWC color=BGR resize=640,320 fit=inside method=nearest crop=9,8 pad=11,10 "
        "pad_value=114 pad_place=top_left mean=0.100000001,116.279999,9.99999968e-21 std=0.333333343",
        "preprocess input=2 layout=NCHW color=RGB resize=256 fit=stretch method=bilinear mean=0 std=1",
    ]
