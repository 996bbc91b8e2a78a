"""Bindings: the source's layout on one side, the engine's on the other."""

import numpy as np
import pytest

from edgepack.artifact import from_engine, identity, to_engine
from edgepack.types import Binding, TensorSpec

SPEC = TensorSpec(name="x", dtype="float32", shape=(1, 3, 4, 5))
ARRAY = np.arange(60, dtype=np.float32).reshape(SPEC.shape)


def test_a_transposed_binding_comes_back_as_it_was() -> None:
    binding = Binding(name="x", dtype="float32", shape=(1, 4, 5, 3), perm=(0, 2, 3, 1))
    engine = to_engine(ARRAY, binding)

    assert engine.shape == (1, 4, 5, 3)
    assert engine[0, 1, 2, 0] == ARRAY[0, 0, 1, 2]
    np.testing.assert_array_equal(from_engine(engine, binding, SPEC), ARRAY)


def test_a_quantized_binding_saturates_and_rounds_half_to_even() -> None:
    spec = TensorSpec(name="x", dtype="float32", shape=(4,))
    binding = Binding(name="x", dtype="int8", shape=(4,), perm=(0,), scale=1.0, zero_point=0)

    np.testing.assert_array_equal(
        to_engine(np.array([0.5, 1.5, 1000.0, -1000.0], np.float32), binding), [0, 2, 127, -128]
    )
    np.testing.assert_array_equal(from_engine(np.array([1, -2, 3, 4], np.int8), binding, spec), [1, -2, 3, 4])


def test_an_unbatched_binding_drops_an_axis_of_one() -> None:
    binding = Binding(name="in0", dtype="float32", shape=(3, 4, 5), perm=(0, 1, 2, 3))

    np.testing.assert_array_equal(to_engine(ARRAY, binding), ARRAY[0])
    np.testing.assert_array_equal(from_engine(ARRAY[0], binding, SPEC), ARRAY)


@pytest.mark.parametrize("dtype", ["int64", "float32", "bool"])
def test_identity_changes_nothing(dtype: str) -> None:
    spec = TensorSpec(name="x", dtype=dtype, shape=(2, 2))
    array = np.array([[0, 1], [1, 0]], dtype)

    np.testing.assert_array_equal(to_engine(array, identity(spec)), array)


def test_a_scalar_stays_a_scalar() -> None:
    spec = TensorSpec(name="n", dtype="float32", shape=())

    assert (
        from_engine(np.ones((1,), np.float32), Binding(name="n", dtype="float32", shape=(1,), perm=()), spec).shape
        == ()
    )
