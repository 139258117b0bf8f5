import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from seed_jax.checkpoint import lazy, model_dir
from seed_jax.checkpoint.store import Store
from seed_jax.errors import UserError

TREE = {
    "layers": {
        "kernel": np.arange(24, dtype=np.float32).reshape(4, 2, 3),
        "scale": np.ones((4, 2), ml_dtypes.bfloat16),
    },
    "step": np.float32(3),
    "on_device": jnp.arange(5, dtype=jnp.int32),
}


def equal(found, expected):
    leaves, wanted = jax.tree.leaves_with_path(found), jax.tree.leaves_with_path(expected)
    assert [path for path, _ in leaves] == [path for path, _ in wanted]
    for (path, leaf), (_, want) in zip(leaves, wanted, strict=True):
        assert leaf.dtype == want.dtype, path
        np.testing.assert_array_equal(leaf, want, err_msg=str(path))


def test_written_arrays_come_back_lazily_and_whole(tmp_path):
    lazy.write_arrays(tmp_path / "params", TREE)
    opened = lazy.open_arrays(tmp_path / "params")
    equal(lazy.materialize(opened), TREE)
    kernel = opened["layers"]["kernel"]
    assert (kernel.shape, kernel.dtype) == ((4, 2, 3), np.float32)
    np.testing.assert_array_equal(kernel[2], TREE["layers"]["kernel"][2])
    equal(model_dir.restore_params(tmp_path / "params"), TREE)


def test_one_lazy_array_is_in_memory_at_a_time(tmp_path):
    """Each array is made after the one before it was let go."""
    alive, most = set(), []

    class Counted(np.ndarray):
        def __del__(self):
            alive.discard(id(self))

    def make(index):
        array = np.full((3, 2), 1.0, np.float32).view(Counted)
        alive.add(id(array))
        most.append(len(alive))
        return array

    tree = {name: lazy.LazyArray((3, 2), np.dtype(np.float32), make) for name in "abcdef"}
    lazy.write_arrays(tmp_path / "params", tree)
    assert len(most) == 6
    assert max(most) <= 2  # the next one may be made while the last is being let go


def test_large_stacks_are_chunked_by_layer(tmp_path, monkeypatch):
    monkeypatch.setattr(lazy, "CHUNK_BYTES", 64)
    lazy.write_arrays(tmp_path / "model", TREE)
    store = Store(tmp_path / "run")
    params = jax.tree.map(jnp.asarray, TREE)
    store.save(7, params=params, optimizer={"count": jnp.zeros(())}, data={}, meta={"architecture": {}})
    store.close()
    import tensorstore

    for folder in (tmp_path / "model", tmp_path / "run/checkpoints/7/params"):
        base = {"driver": "file", "path": f"{folder}/"}
        for name, chunk in {"layers.kernel": (1, 2, 3), "layers.scale": (4, 2)}.items():
            kvstore = {"driver": "ocdbt", "base": base, "path": f"{name}/"}
            found = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}).result()
            assert found.chunk_layout.read_chunk.shape == chunk
        equal(lazy.materialize(lazy.open_arrays(folder)), TREE)


def test_a_model_directory_opens_lazily(tmp_path):
    model_dir.save(tmp_path / "m", "llama", {"sizes": {}}, TREE)
    opened = model_dir.open_lazily(tmp_path / "m", "llama")
    assert isinstance(opened.params["step"], lazy.LazyArray)
    equal(lazy.materialize(opened.params), TREE)
    with pytest.raises(UserError, match=r"llama.*expected.*unclip"):
        model_dir.open_lazily(tmp_path / "m", "unclip")
    for name in ("manifest.ocdbt", "_METADATA"):
        (tmp_path / "m/params" / name).unlink()
    with pytest.raises(UserError, match="cannot be read"):
        model_dir.open_lazily(tmp_path / "m")


def test_nothing_is_left_where_an_array_cannot_be_made(tmp_path):
    def fail(index):
        raise UserError("the file ends here")

    broken = {**TREE, "bad": lazy.LazyArray((2,), np.dtype(np.float32), fail)}
    with pytest.raises(UserError, match="the file ends here"):
        model_dir.save(tmp_path / "m", "llama", {}, broken)
    assert list(tmp_path.iterdir()) == []
