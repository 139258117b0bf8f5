"""Meshes, rules and what they refuse."""

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
from seed_jax.models.llama.model import Llama, LlamaConfig
from seed_jax.models.nn import lora


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


TABLES = {
    "v5e_8x8": {"fsdp": 64},
    "v5e_16x16_x2": {"replica": 2, "fsdp": 256},
    "v5p_4x4x4_tensor4": {"fsdp": 16, "tensor": 4},
    "h200_8": {"fsdp": 8},
}


@pytest.mark.parametrize("mesh", TABLES)
@pytest.mark.parametrize("model", ["8b", "14b"])
def test_every_tensor_of_the_real_models_lies_as_written_down(model, mesh):
    """The tables in tests/goldens/sharding: one line a tensor. A change here changes memory and traffic of real runs.

    After a change on purpose, `SEED_JAX_WRITE_GOLDENS=1 pytest tests/sharding_test.py` writes them anew.
    """
    sizes = {"8b": LlamaConfig.seed_8b(), "14b": LlamaConfig.seed_14b()}[model]
    llama = Llama(sizes, lora=lora.LoraSpec())
    params = jax.eval_shape(llama.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 8), jnp.int32))["params"]
    tree = {"params": params, "lora": lora.abstract(params, llama.lora)}
    shape = {"replica": 1, "fsdp": 1, "tensor": 1} | TABLES[mesh]
    abstract = jax.sharding.AbstractMesh(tuple(shape.values()), tuple(shape))
    cut = sharding.tree_shardings(tree, abstract)
    sharding.check_cut(sharding.unbox(tree), cut)
    found = "\n".join(sharding.describe(sharding.unbox(tree), cut)) + "\n"
    table = Path(__file__).parent / f"goldens/sharding/{model}_{mesh}.txt"
    if os.environ.get("SEED_JAX_WRITE_GOLDENS"):
        table.parent.mkdir(exist_ok=True)
        table.write_text(found)
    assert found == table.read_text()


def test_more_than_two_percent_whole_is_refused():
    mesh = sharding.make_mesh({"fsdp": 8})
    many = {f"vector_{i}": boxed((200_000,), (None,)) for i in range(5)}  # each below the limit for one tensor
    tree = {"cut": boxed((4096, 4096), ("embed", None)), **many}
    with pytest.raises(UserError, match=r"5\.6% of the parameters whole on every device, at most 2%.*vector_0"):
        sharding.check_cut(nn.meta.unbox(tree), sharding.tree_shardings(tree, mesh))
    fewer = {"cut": tree["cut"], "vector_0": many["vector_0"]}
    sharding.check_cut(nn.meta.unbox(fewer), sharding.tree_shardings(fewer, mesh))
    alone = sharding.make_mesh({"replica": 8})  # nothing cuts: every replica holds all
    sharding.check_cut(nn.meta.unbox(tree), sharding.tree_shardings(tree, alone))


class Chip:
    """A device of a slice, as far as building a mesh looks at it."""

    platform, device_kind = "gpu", "some"

    def __init__(self, number):
        self.id = number
        self.slice_index = self.process_index = number // 4


def test_slices_lie_along_replica():
    chips = [Chip(number) for number in range(8)]
    mesh = sharding.make_mesh({"replica": 2, "fsdp": 2, "tensor": 2}, chips)
    assert [{chip.slice_index for chip in part.flat} for part in mesh.devices] == [{0}, {1}]
    with pytest.raises(UserError, match=r"mesh.replica is 1, expected a multiple of 2"):
        sharding.make_mesh({"fsdp": 8}, chips)
