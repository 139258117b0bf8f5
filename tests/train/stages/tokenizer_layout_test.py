"""The real sizes of both tokenizer stages are cut over a mesh: no big tensor lies whole on every device."""

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict

from seed_jax import sharding
from seed_jax.convert.key_table import expected_shapes
from seed_jax.convert.tokenizer import key_table
from seed_jax.convert.tokenizer import key_table as tokenizer_table
from seed_jax.models.clip.text import ClipText, ClipTextConfig
from seed_jax.models.clip.vision import clip_vision_config
from seed_jax.models.tokenizer.image_text import ImageText, ImageTextConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig
from seed_jax.models.tokenizer.text_branch import TextBranchConfig
from seed_jax.models.tokenizer.vit import Vit
from seed_jax.train.optimizer import decay_mask
from seed_jax.train.stages import qformer
from seed_jax.train.stages.codebook import stage as tokenizer_codebook
from seed_jax.train.stages.codebook.model import CodebookModel, CodebookSizes
from seed_jax.train.stages.codebook.revival import HealthOptions
from seed_jax.train.stages.codebook.teachers import Teachers

MESHES = ({"fsdp": 8}, {"replica": 2, "fsdp": 2, "tensor": 2})


def count(tree) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(sharding.unbox(tree)))


def qformer_stage():
    return qformer.abstract(ImageText(ImageTextConfig()))


def codebook_stage():
    sizes = CodebookSizes(SeedTokenizerConfig.full("reverse_qformer"), 0, TextBranchConfig())
    vision = Vit(clip_vision_config())
    teachers = Teachers(vision, ClipText(ClipTextConfig.vit_l()), None, {"vision": "a", "text": "b"})
    return tokenizer_codebook.abstract(CodebookModel(sizes), teachers, HealthOptions(ema_decay=0.9))


@pytest.mark.parametrize("mesh", MESHES, ids=str)
@pytest.mark.parametrize("stage", [qformer_stage, codebook_stage])
def test_nothing_big_lies_whole(stage, mesh):
    boxed = stage()
    shardings = sharding.tree_shardings(boxed, sharding.make_mesh(mesh))
    assert sharding.whole_tensors(sharding.unbox(boxed), shardings) == []


def test_sizes_are_the_original_s():
    tree = codebook_stage()
    # Counted in transformers: CLIPVisionModelWithProjection of ViT-H/14 and CLIPTextModel of ViT-L/14.
    assert count(tree["teacher"]["vision"]) == 632_076_800
    assert count(tree["teacher"]["text"]) == 123_060_480
    released = CodebookModel(CodebookSizes(SeedTokenizerConfig.full())).abstract()["params"]
    # Spec A.8.1 without its 512 position ids.
    assert count(released) == 1_149_999_040 - 512


def test_what_trains():
    one, two = (flatten_dict(sharding.unbox(stage())) for stage in (qformer_stage, codebook_stage))
    frozen = {path[:2] for path in one if not qformer.is_trained(path)}
    assert frozen == {("params", "vit")}
    frozen = {path[:2] for path in two if not tokenizer_codebook.is_trained(path)}
    teachers = {("teacher", "vision"), ("teacher", "text")}
    assert frozen == {("params", "vit"), ("params", "ln_vision"), ("params", "qformer")} | teachers
    assert all(two[path].dtype == jnp.float32 for path in two)


def test_weight_decay_follows_the_original_s_names():
    """No decay for fewer than two axes, or "bias", "ln" or "bn" in the name; our stacks have an axis more."""
    decoder_table = tokenizer_table.key_table(SeedTokenizerConfig.full("reverse_qformer"))
    branch_table = key_table.text_branch_table(TextBranchConfig())
    for table, tree in (
        (key_table.image_text_table(ImageTextConfig()), qformer_stage()["params"]),
        (decoder_table, codebook_stage()["params"]),
        (branch_table, codebook_stage()["text_branch"]),
    ):
        params = sharding.unbox(tree)
        decayed = flatten_dict(decay_mask(params), sep="/")
        shapes = expected_shapes(table, params)
        for entry in table:
            if entry.path.startswith("vit/"):  # frozen
                continue
            for name in entry.names:
                wanted = len(shapes[name]) >= 2 and not any(part in name for part in ("bias", "ln", "bn"))
                assert decayed[entry.path] == wanted, name
