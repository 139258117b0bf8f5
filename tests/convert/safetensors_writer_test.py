import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from seed_jax.convert.safetensors_writer import write_safetensors
from seed_jax.convert.tensors import open_tensors
from seed_jax.errors import UserError

ARRAYS = {
    "b": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a": np.float32(0.07)[...],
    "empty": np.zeros((0, 2), np.float32),
}


def write(path, arrays, dtype):
    dtype = dtype if isinstance(dtype, dict) else np.dtype(dtype)
    return write_safetensors(path, {n: a.shape for n, a in arrays.items()}, dtype, arrays.items())


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_the_reference_reader_finds_the_same_numbers(tmp_path, dtype):
    size = write(tmp_path / "m.safetensors", ARRAYS, dtype)
    assert (tmp_path / "m.safetensors").stat().st_size == size
    found = load_file(tmp_path / "m.safetensors") if dtype != ml_dtypes.bfloat16 else None
    opened = open_tensors(tmp_path / "m.safetensors")
    assert opened.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert opened[name].read().dtype == dtype
        np.testing.assert_array_equal(opened[name].read(), array.astype(dtype))
        if found:
            np.testing.assert_array_equal(found[name], array.astype(dtype))


def test_each_tensor_may_have_its_own_format(tmp_path):
    arrays = {**ARRAYS, "n": np.arange(4)[None]}
    write(tmp_path / "m.safetensors", arrays, {name: array.dtype for name, array in arrays.items()})
    found = load_file(tmp_path / "m.safetensors")
    assert {name: array.dtype for name, array in found.items()} == {name: array.dtype for name, array in arrays.items()}
    np.testing.assert_array_equal(found["n"], [[0, 1, 2, 3]])


@pytest.mark.parametrize("value", [65504.5, -70000.0, np.inf])
def test_a_number_that_float16_cannot_hold_is_named(tmp_path, value):
    arrays = {"fine": np.float32([65504]), "wide": np.float32([1, value])}
    with pytest.raises(UserError, match=r"wide holds .*, more than float16's largest number, 65504: choose --dtype"):
        write(tmp_path / "m.safetensors", arrays, np.float16)
    assert not (tmp_path / "m.safetensors").exists()
    write(tmp_path / "m.safetensors", arrays, ml_dtypes.bfloat16)


def test_names_and_shapes_must_be_as_announced(tmp_path):
    with pytest.raises(ValueError, match=r"b has shape \(2, 3\), announced as \(3, 2\)"):
        write_safetensors(tmp_path / "m.safetensors", {"b": (3, 2)}, np.dtype(np.float32), [("b", ARRAYS["b"])])
    with pytest.raises(ValueError, match=r"announced but not written: \['c'\]"):
        write_safetensors(tmp_path / "m.safetensors", {"c": (3,)}, np.dtype(np.float32), [])
