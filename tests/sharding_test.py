"""Meshes, sharding rules, and the errors of both."""

import math
import os
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from seed_jax import sharding
from seed_jax.errors import UserError
from seed_jax.models.llama.block import LORA_TARGETS
from seed_jax.models.llama.model import Llama, LlamaConfig
from seed_jax.models.nn import lora


def boxed(shape, names):
    return nn.LogicallyPartitioned(jax.ShapeDtypeStruct(shape, jnp.float32), names)


def test_mesh_fills_in_minus_one():
    mesh = sharding.make_mesh({"fsdp": -1, "tensor": 2})
    assert dict(mesh.shape) == {"replica": 1, "fsdp": 4, "tensor": 2}
    assert sharding.num_batch_shards(mesh) == 4


@pytest.mark.parametrize(
    ("shape", "key_words"),
    [
        ({"fsdp": 3}, ["fsdp 3", "8 device"]),
        ({"fsdp": -1, "tensor": 3}, ["tensor 3", "8 device"]),
        ({"fsdp": -1, "tensor": -1}, ["at most one"]),
        ({"fsdp": 0}, ["positive"]),
        ({"model": 8}, ["mesh.model", "replica, fsdp, tensor"]),
    ],
)
def test_invalid_mesh_is_refused(shape, key_words):
    with pytest.raises(UserError) as error:
        sharding.make_mesh(shape)
    assert all(key_word in str(error.value) for key_word in key_words)


def test_rules_shard_weights_over_both_axes():
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
    tree = {
        "q": {"kernel": boxed((3, 8, 16), ("layers", "embed", "heads"))},
        "o": {"kernel": boxed((3, 16, 8), ("layers", "heads", "embed"))},
        "table": boxed((128, 8), ("vocab", "embed")),
        "scale": boxed((8,), ("norm",)),
    }
    shardings = sharding.tree_shardings(tree, mesh)
    assert shardings["q"]["kernel"].spec == PartitionSpec(None, "fsdp", "tensor")
    assert shardings["o"]["kernel"].spec == PartitionSpec(None, "tensor", "fsdp")
    assert shardings["table"].spec == PartitionSpec("tensor", "fsdp")
    assert shardings["scale"].spec in (PartitionSpec(), PartitionSpec(None))


def test_a_tensor_that_the_mesh_does_not_divide_is_named():
    mesh = sharding.make_mesh({"fsdp": 8})
    with pytest.raises(UserError, match=r"head/kernel \(12, 64\) has 12, not divisible by fsdp = 8"):
        sharding.tree_shardings({"head": {"kernel": boxed((12, 64), ("embed", "vocab"))}}, mesh)


def test_replicated_tensors_are_those_without_a_rule():
    mesh = sharding.make_mesh({"fsdp": 8})
    tree = {"sharded": boxed((1024, 1024), ("embed", None)), "replicated": boxed((1024, 1024), (None, None))}
    shardings = sharding.tree_shardings(tree, mesh)
    assert sharding.replicated_tensors(nn.meta.unbox(tree), shardings) == ["replicated"]


def test_shard_batch_assembles_the_global_batch():
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
    batch_sharding = sharding.batch_sharding(mesh)
    rows = jnp.arange(8 * 3, dtype=jnp.int32).reshape(8, 3)
    assert sharding.local_batch_indices(batch_sharding, 8) == list(range(8))
    batch = sharding.shard_batch({"x": jax.device_get(rows)}, batch_sharding, 8)["x"]
    assert batch.sharding == batch_sharding
    assert (batch == rows).all()


@pytest.mark.parametrize("sizes", [LlamaConfig.seed_8b(), LlamaConfig.seed_14b()], ids=["8b", "14b"])
def test_no_large_tensor_of_the_real_models_is_replicated(sizes):
    mesh = sharding.make_mesh({"fsdp": 4, "tensor": 2})
    model = Llama(sizes, lora=lora.LoraSpec(LORA_TARGETS))
    params = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8), jnp.int32))["params"]
    tree = {"params": params, "lora": lora.abstract(params, model.lora)}
    shardings = sharding.tree_shardings(tree, mesh)
    shapes = sharding.unbox(tree)
    # The stacked norm scales (32 x 4096 float32, 0.5 MiB) are below 1 MiB; a rule leaves them replicated.
    assert sharding.replicated_tensors(shapes, shardings) == []
    leaves = zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings), strict=True)
    local = sum(math.prod(leaf_sharding.shard_shape(leaf.shape)) for leaf, leaf_sharding in leaves)
    total = sum(x.size for x in jax.tree.leaves(shapes))
    # An eighth of the model, and at most 2 % more for what is not sharded in eight (adapters' ranks, norms).
    assert local < 1.02 * total / 8 + 0.001 * total


TABLES = {
    "v5e_8x8": {"fsdp": 64},
    "v5e_16x16_x2": {"replica": 2, "fsdp": 256},
    "v5p_4x4x4_tensor4": {"fsdp": 16, "tensor": 4},
    "h200_8": {"fsdp": 8},
}


@pytest.mark.parametrize("mesh", TABLES)
@pytest.mark.parametrize("model", ["8b", "14b"])
def test_shardings_of_the_real_models_equal_the_goldens(model, mesh):
    """Compare with tests/goldens/sharding, one line per tensor: a change changes memory and traffic of real runs.

    After an intended change, `SEED_JAX_WRITE_GOLDENS=1 pytest tests/sharding_test.py` rewrites the goldens.
    """
    sizes = {"8b": LlamaConfig.seed_8b(), "14b": LlamaConfig.seed_14b()}[model]
    llama = Llama(sizes, lora=lora.LoraSpec(LORA_TARGETS))
    params = jax.eval_shape(llama.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8), jnp.int32))["params"]
    tree = {"params": params, "lora": lora.abstract(params, llama.lora)}
    shape = {"replica": 1, "fsdp": 1, "tensor": 1} | TABLES[mesh]
    abstract = jax.sharding.AbstractMesh(tuple(shape.values()), tuple(shape))
    shardings = sharding.tree_shardings(tree, abstract)
    sharding.check_sharded(sharding.unbox(tree), shardings)
    lines = "\n".join(sharding.describe_shardings(sharding.unbox(tree), shardings)) + "\n"
    table = Path(__file__).parent / f"goldens/sharding/{model}_{mesh}.txt"
    if os.environ.get("SEED_JAX_WRITE_GOLDENS"):
        table.parent.mkdir(exist_ok=True)
        table.write_text(lines)
    assert lines == table.read_text()


def test_more_than_two_percent_replicated_is_refused():
    mesh = sharding.make_mesh({"fsdp": 8})
    many = {f"vector_{i}": boxed((200_000,), (None,)) for i in range(5)}  # each below the limit for one tensor
    tree = {"sharded": boxed((4096, 4096), ("embed", None)), **many}
    with pytest.raises(UserError, match=r"5\.6% of the parameters replicated on every device, at most 2%.*vector_0"):
        sharding.check_sharded(nn.meta.unbox(tree), sharding.tree_shardings(tree, mesh))
    fewer = {"sharded": tree["sharded"], "vector_0": many["vector_0"]}
    sharding.check_sharded(nn.meta.unbox(fewer), sharding.tree_shardings(fewer, mesh))
    replicas = sharding.make_mesh({"replica": 8})  # no axis shards parameters
    sharding.check_sharded(nn.meta.unbox(tree), sharding.tree_shardings(tree, replicas))


class Chip:
    """A device of a slice, with the attributes that building a mesh needs."""

    platform, device_kind = "gpu", "some"

    def __init__(self, number):
        self.id = number
        self.slice_index = self.process_index = number // 4


def test_slices_are_along_replica():
    chips = [Chip(number) for number in range(8)]
    mesh = sharding.make_mesh({"replica": 2, "fsdp": 2, "tensor": 2}, chips)
    assert [{chip.slice_index for chip in replica.flat} for replica in mesh.devices] == [{0}, {1}]
    with pytest.raises(UserError, match=r"mesh.replica is 1, expected a multiple of 2"):
        sharding.make_mesh({"fsdp": 8}, chips)
