"""Meshes, rules and what they refuse."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from seed_jax import sharding
from seed_jax.errors import UserError
from seed_jax.models import lora
from seed_jax.models.llama import Llama, LlamaConfig


def boxed(shape, names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def test_mesh_fills_the_open_axis():
    mesh = sharding.make_mesh({"fsdp": -1, "tensor": 2})
    assert dict(mesh.shape) == {"replica": 1, "fsdp": 4, "tensor": 2}
    assert sharding.batch_shards(mesh) == 4


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ({"fsdp": 3}, ["fsdp 3", "8 device"]),
        ({"fsdp": -1, "tensor": 3}, ["tensor 3", "8 device"]),
        ({"fsdp": -1, "tensor": -1}, ["at most one"]),
        ({"fsdp": 0}, ["positive"]),
        ({"model": 8}, ["mesh.model", "replica, fsdp, tensor"]),
    ],
)
def test_impossible_mesh_is_named(shape, words):
    with pytest.raises(UserError) as error:
        sharding.make_mesh(shape)
    assert all(word in str(error.value) for word in words)


def test_rules_cut_weights_over_both_axes():
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
    tree = {
        "q": {"kernel": boxed((3, 8, 16), ("layers", "embed", "heads"))},
        "o": {"kernel": boxed((3, 16, 8), ("layers", "heads", "embed"))},
        "table": boxed((128, 8), ("vocab", "embed")),
        "scale": boxed((8,), ("norm",)),
    }
    cut = sharding.tree_shardings(tree, mesh)
    assert cut["q"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert cut["o"]["kernel"].spec == PartitionSpec(None, "tensor", "fsdp")
    assert cut["table"].spec == PartitionSpec("tensor", "fsdp")
    assert cut["scale"].spec in (PartitionSpec(), PartitionSpec(None))


def test_a_tensor_the_mesh_does_not_divide_is_named():
    mesh = sharding.make_mesh({"fsdp": 8})
    with pytest.raises(UserError, match=r"head/kernel \(12, 64\) has 12, not divisible by fsdp = 8"):
        sharding.tree_shardings({"head": {"kernel": boxed((12, 64), ("embed", "vocab"))}}, mesh)


def test_whole_tensors_finds_what_no_rule_cuts():
    mesh = sharding.make_mesh({"fsdp": 8})
    tree = {"cut": boxed((1024, 1024), ("embed", None)), "whole": boxed((1024, 1024), (None, None))}
    cut = sharding.tree_shardings(tree, mesh)
    shapes = nn.meta.unbox(tree)
    assert sharding.whole_tensors(shapes, cut) == ["whole"]


def test_rows_are_placed_where_the_sharding_wants_them():
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
    cut = sharding.batch_sharding(mesh)
    rows = jnp.arange(8 * 3, dtype=jnp.int32).reshape(8, 3)
    assert sharding.local_rows(cut, 8) == list(range(8))
    placed = sharding.place({"x": jax.device_get(rows)}, cut, 8)["x"]
    assert placed.sharding == cut
    assert (placed == rows).all()


@pytest.mark.parametrize("sizes", [LlamaConfig.seed_8b(), LlamaConfig.seed_14b()], ids=["8b", "14b"])
def test_no_big_tensor_of_the_real_models_is_whole_on_a_device(sizes):
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
    model = Llama(sizes, lora=lora.LoraSpec())
    params = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8), jnp.int32))["params"]
    tree = {"params": params, "lora": lora.abstract(params, model.lora)}
    cut = sharding.tree_shardings(tree, mesh)
    shapes = sharding.unbox(tree)
    # The stacked norm scales (32 x 4096 float32, 0.5 MiB) are below 1 MiB; a rule leaves them whole.
    assert sharding.whole_tensors(shapes, cut) == []
    local = sum(math.prod(c.shard_shape(x.shape)) for x, c in zip(*map(jax.tree.leaves, (shapes, cut)), strict=True))
    total = sum(x.size for x in jax.tree.leaves(shapes))
    # An eighth of the model, and at most 2 % more for what is not cut in eight (adapters' ranks, norms).
    assert local < 1.02 * total / 8 + 0.001 * total
