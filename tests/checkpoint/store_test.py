"""Checkpoints survive kills, meshes and damage."""

import contextlib
import itertools
import logging
import resource
import shutil
import signal
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from seed_jax import sharding
from seed_jax.checkpoint.store import Store
from seed_jax.errors import UserError
from tests.support import checkpoints

META = {"architecture": {"hidden": 8, "layers": 2}}


def tree(mesh, value=0.0):
    cut = NamedSharding(mesh, PartitionSpec("fsdp", "tensor"))
    return {"w": jax.device_put(value + jnp.arange(64.0).reshape(8, 8), cut)}


def abstract(value):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), value)


@pytest.fixture
def mesh():
    return sharding.make_mesh({"fsdp": 4, "tensor": 2})


def save(store, step, mesh, value=None):
    params = tree(mesh, step if value is None else value)
    store.save(step, params=params, optimizer={"m": params["w"]}, data={"lanes": {"0": [step, []]}}, meta=META)


def test_restore_on_another_mesh(tmp_path, mesh):
    store = Store(tmp_path)
    save(store, 5, mesh)
    store.close()
    other = sharding.make_mesh({"fsdp": 2, "tensor": 4})
    wanted = tree(other)
    found = Store(tmp_path).restore(abstract(wanted), abstract({"m": wanted["w"]}), META)
    assert found.step == 5
    assert found.data == {"lanes": {"0": [5, []]}}
    assert found.params["w"].sharding == wanted["w"].sharding
    np.testing.assert_array_equal(found.params["w"], 5 + np.arange(64.0).reshape(8, 8))


def test_keeps_the_last_and_every_nth(tmp_path, mesh):
    store = Store(tmp_path, keep_last=2, keep_every=4)
    for step in range(1, 9):
        save(store, step, mesh)
    store.wait()
    assert store.steps() == [4, 7, 8]
    store.close()


def test_unfinished_checkpoint_is_removed_with_a_warning(tmp_path, mesh, caplog):
    store = Store(tmp_path)
    save(store, 1, mesh)
    store.close()
    shutil.copytree(tmp_path / "checkpoints/1", tmp_path / "checkpoints/2.orbax-checkpoint-tmp-77")
    with caplog.at_level(logging.WARNING):
        store = Store(tmp_path)
    assert store.steps() == [1]
    assert "unfinished checkpoint 2.orbax-checkpoint-tmp-77" in caplog.text
    assert not list((tmp_path / "checkpoints").glob("*tmp*"))


def test_an_unfinished_checkpoint_is_removed_while_threads_still_write_into_it(tmp_path, mesh):
    unfinished = tmp_path / "checkpoints/2.orbax-checkpoint-tmp"
    (unfinished / "params").mkdir(parents=True)
    stopped = threading.Event()

    def write():
        for number in itertools.count():
            if stopped.is_set():
                return
            with contextlib.suppress(OSError):
                (unfinished / "params" / str(number)).touch()

    writers = [threading.Thread(target=write) for _ in range(4)]
    timer = threading.Timer(1, stopped.set)
    for thread in [*writers, timer]:
        thread.start()
    try:
        Store(tmp_path).close()
    finally:
        for thread in [*writers, timer]:
            thread.join()
    assert not unfinished.exists()


@pytest.mark.parametrize("victim", ["params", "optimizer", "data", "meta"])
def test_damaged_falls_back_to_an_older_one(tmp_path, mesh, caplog, victim):
    store = Store(tmp_path)
    save(store, 1, mesh)
    save(store, 2, mesh)
    store.close()
    shutil.rmtree(tmp_path / "checkpoints/2" / victim)
    store = Store(tmp_path)
    like = tree(mesh)
    found = store.restore(abstract(like), abstract({"m": like["w"]}), META)
    assert found.step == 1
    assert "checkpoints/2: it is damaged" in caplog.text
    store.drop_after(1)
    assert store.steps() == [1]


def test_a_save_that_fails_is_noticed_without_another_save(tmp_path, mesh):
    store = Store(tmp_path)
    save(store, 1, mesh)
    store.wait()
    previous, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, previous[1]))  # fails like a full disk

    def save_and_check():
        save(store, 2, mesh)
        while True:
            store.check()

    try:
        with pytest.raises(UserError, match=r"step 2 could not be written.*newest complete one is of step 1"):
            save_and_check()
        store.close()  # threads of the save go on after its first error: they must meet the full disk, too
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, previous)
        signal.signal(signal.SIGXFSZ, ignored)
    assert checkpoints.next_start_keeps(tmp_path, "1")


def test_only_damaged_ones_left(tmp_path, mesh):
    store = Store(tmp_path)
    save(store, 1, mesh)
    store.close()
    shutil.rmtree(tmp_path / "checkpoints/1/params")
    like = tree(mesh)
    with pytest.raises(UserError, match="damaged"):
        Store(tmp_path).restore(abstract(like), abstract({"m": like["w"]}), META)


def test_another_architecture_is_refused(tmp_path, mesh):
    store = Store(tmp_path)
    save(store, 1, mesh)
    store.close()
    like = tree(mesh)
    with pytest.raises(UserError, match="hidden is 8 there and 16 in the config"):
        Store(tmp_path).restore(
            abstract(like), abstract({"m": like["w"]}), {"architecture": {"hidden": 16, "layers": 2}}
        )
