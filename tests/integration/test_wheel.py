"""The wheel is whole: installed in a fresh environment, away from the checkout, it builds a bundle."""

import json
import subprocess
import sys
from pathlib import Path

from edgepack import converter
from tests.conftest import ROOT, need
from tests.models import tiny_classifier


def test_the_installed_wheel_builds_a_bundle_without_the_checkout(cache: Path, tmp_path: Path) -> None:
    need("aarch64-linux-gnu-g++", "apt install g++-aarch64-linux-gnu")
    uv, env = converter.uv(), {**converter.uv_env(), "EDGEPACK_CACHE": str(cache)}

    def call(*argv: object) -> str:
        done = subprocess.run(list(map(str, argv)), cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call(uv, "build", "--quiet", "--wheel", "--out-dir", tmp_path / "dist", ROOT)
    call(uv, "venv", "--quiet", "--python", sys.executable, tmp_path / "env")
    wheel = next((tmp_path / "dist").glob("*.whl"))
    call(uv, "pip", "install", "--quiet", "--python", tmp_path / "env" / "bin" / "python", wheel)
    edgepack = tmp_path / "env" / "bin" / "edgepack"
    tiny_classifier(tmp_path / "tiny.onnx")

    targets = json.loads(call(edgepack, "targets", "--json"))["targets"]
    built = json.loads(
        call(edgepack, "build", "tiny.onnx", "-t", "rk3588", "--engine", "onnxruntime", "--precision", "fp32", "--json")
    )

    assert {"rk3588", "raspberrypi4", "linux-riscv64"} <= {t["name"] for t in targets}
    assert [o["status"] for o in built["outcomes"]] == ["built"]
    assert (tmp_path / "tiny-rk3588.edgepack" / "include" / "edgepack.h").is_file()
    harness = (tmp_path / "tiny-rk3588.edgepack" / "bin" / "edgepack-onnxruntime").read_bytes()
    assert str(tmp_path).encode() not in harness and str(cache).encode() not in harness
