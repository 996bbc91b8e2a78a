"""A classifier of reddish pictures gets them as BGR: the build says which order it is surer of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgepack import config, converter, sampling, steps
from edgepack.cache import Cache
from edgepack.errors import ToolMissing
from edgepack.plan import make_plan
from tests.conftest import missing
from tests.integration.test_onnxruntime import model_of


@pytest.fixture(scope="module", autouse=True)
def _environment() -> None:
    try:
        converter.environment("run_onnxruntime")
    except ToolMissing as error:
        missing(f"{error} ({error.hint})")


def red_or_not(path: Path) -> Path:
    """1x3x8x8 -> 1x4 scores: the first grows with the first channel's mean over the third's."""
    weights = np.zeros((4, 3), np.float32)
    weights[0] = 4.0, 0.0, -4.0
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["image"], ["pool"]),
            helper.make_node("Flatten", ["pool"], ["flat"]),
            helper.make_node("Gemm", ["flat", "w"], ["scores"], transB=1),
        ],
        "red",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, 4])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


@pytest.mark.parametrize("exchanged", [False, True])
def test_the_order_that_the_model_is_surer_of_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], exchanged: bool
) -> None:
    model = model_of(red_or_not(tmp_path / "model.onnx"))
    random = np.random.default_rng(1)
    pictures = random.random((40, 3, 4, 4)).repeat(2, axis=2).repeat(2, axis=3).astype(np.float32)
    pictures[:, 0] += random.random((40, 1, 1)).astype(np.float32)
    np.savez(tmp_path / "data.npz", image=pictures[:, ::-1] if exchanged else pictures)
    plan = make_plan(
        str(model.path), config.load_target("linux-x86_64"), calibration=tmp_path / "data.npz", output=tmp_path
    )
    cache = Cache(tmp_path / "cache")
    gathered = sampling.samples_of(plan, cache, model)
    for _ in range(2):  # the second time from the cache
        capsys.readouterr()
        steps.check_channel_order(plan, cache, model, gathered)
        said = capsys.readouterr().err
        assert ("with red and blue exchanged (mean confidence" in said) is exchanged
        assert ('input "image": are red and blue exchanged in the arrays?' in said) is exchanged
