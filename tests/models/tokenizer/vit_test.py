"""The vision transformer: sizes, scan, patches, remat, and CLIP's tower against transformers."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from seed_jax.errors import UserError
from seed_jax.models.tokenizer.vit import Block, BlockConfig, Blocks, PatchEmbed, Vit, VitConfig
from tests.models.tokenizer.cases import random_like
from tests.support import philox

TINY = BlockConfig(width=16, depth=3, heads=2, mlp_width=24)


def shapes_of(module, *args, **kwargs):
    return meta.unbox(jax.eval_shape(functools.partial(module.init, **kwargs), jax.random.key(0), *args))["params"]


def test_vit_g_has_the_published_number_of_parameters():
    shapes = shapes_of(Vit(VitConfig()), jnp.zeros((1, 224, 224, 3)))
    assert sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)) == 985_894_528
    assert shapes["blocks"]["layers"]["attn"]["qkv"]["kernel"].shape == (39, 1408, 4224)
    assert VitConfig().num_tokens == 257


@pytest.mark.parametrize("key_bias", [False, True])
def test_scan_equals_a_loop_over_blocks(key_bias):
    config = BlockConfig(width=16, depth=3, heads=2, mlp_width=24, key_bias=key_bias)
    x = jax.random.normal(jax.random.key(1), (2, 5, 16))
    params = random_like(shapes_of(Blocks(config), x))
    block, y = jax.jit(Block(config).apply), x
    for layer in range(config.depth):
        y, _ = block({"params": jax.tree.map(lambda p, i=layer: p[i], params["layers"])}, y)
    scanned = jax.jit(Blocks(config).apply)({"params": params}, x)
    np.testing.assert_allclose(scanned, y, atol=1e-6)  # the same operations, fused differently


def test_eva_blocks_have_no_key_bias():
    attention = shapes_of(Blocks(TINY), jnp.zeros((1, 2, 16)))["layers"]["attn"]
    assert attention.keys() == {"qkv", "q_bias", "v_bias", "proj"}
    assert attention["qkv"].keys() == {"kernel"}


def test_patches_are_a_convolution_row_by_row():
    config = VitConfig(image_size=12, patch_size=4, blocks=TINY)
    image = jax.random.normal(jax.random.key(2), (2, 12, 12, 3))
    params = random_like(shapes_of(PatchEmbed(config), image))
    convolved = jax.lax.conv_general_dilated(
        image, params["kernel"], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), precision="highest"
    )
    ours = PatchEmbed(config).apply({"params": params}, image)
    np.testing.assert_allclose(ours, convolved.reshape(2, 9, 16) + params["bias"][None, None], atol=2e-6)


@pytest.mark.slow
def test_remat_recomputes_with_the_same_gradients():
    x = jax.random.normal(jax.random.key(3), (2, 5, 16))
    params = random_like(shapes_of(Blocks(TINY), x))

    def gradient(remat):
        return jax.jit(jax.grad(lambda p: jnp.square(Blocks(TINY, remat=remat).apply({"params": p}, x)).sum()))

    plain, recomputed = gradient(False)(params), gradient(True)(params)
    assert "remat" in str(jax.make_jaxpr(gradient(True))(params))
    assert "remat" not in str(jax.make_jaxpr(gradient(False))(params))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), plain, recomputed)


def test_invalid_sizes_are_refused():
    with pytest.raises(UserError, match="divisible by its heads: found 16 and 3"):
        BlockConfig(width=16, heads=3)
    with pytest.raises(UserError, match="multiple of the patch size: found 225 and 14"):
        VitConfig(image_size=225)
    with pytest.raises(UserError, match=r"'relu'.*gelu, quick_gelu"):
        BlockConfig(activation="relu")


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_clip_vision_tower_equals_transformers(activation):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    reference = transformers.CLIPVisionModelWithProjection(
        transformers.CLIPVisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, projection_dim=10,
            image_size=12, patch_size=4, hidden_act=activation,
        )
    ).eval()  # fmt: skip
    for name, parameter in reference.named_parameters():
        parameter.data = torch.from_numpy(0.3 * philox.normal(0, name, tuple(parameter.shape)))
    config = VitConfig.clip(
        image_size=12, patch_size=4, width=16, depth=3, heads=2, mlp_width=24, projection=10, activation=activation
    )
    image = np.random.default_rng(0).normal(size=(2, 12, 12, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.from_numpy(image.transpose(0, 3, 1, 2)))
    params = clip_params({name: value.numpy() for name, value in reference.state_dict().items()}, config.blocks.depth)
    shapes = shapes_of(Vit(config), jnp.zeros((1, 12, 12, 3)), method="embed")
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes)
    apply = jax.jit(Vit(config).apply, static_argnames="method")
    tokens, embedding = (apply({"params": params}, jnp.asarray(image), method=m) for m in (None, "embed"))
    # float32 on both sides; the order of sums differs
    np.testing.assert_allclose(tokens, expected.last_hidden_state, atol=2e-5, rtol=1e-5)
    np.testing.assert_allclose(embedding, expected.image_embeds, atol=2e-5, rtol=1e-5)


def clip_params(state: dict[str, np.ndarray], depth: int) -> dict:
    """Convert transformers' CLIP weights to our parameter tree."""
    state = {name.removeprefix("vision_model."): value for name, value in state.items()}

    def norm(name):
        return {"scale": state[f"{name}.weight"], "bias": state[f"{name}.bias"]}

    def dense(name):
        return {"kernel": state[f"{name}.weight"].T, "bias": state[f"{name}.bias"]}

    def block(layer):
        name = f"encoder.layers.{layer}"
        q, k, v = (dense(f"{name}.self_attn.{part}_proj") for part in "qkv")
        return {
            "norm1": norm(f"{name}.layer_norm1"),
            "norm2": norm(f"{name}.layer_norm2"),
            "attn": {
                "qkv": jax.tree.map(lambda *parts: np.concatenate(parts, -1), q, k, v),
                "proj": dense(f"{name}.self_attn.out_proj"),
            },
            "mlp": {"fc1": dense(f"{name}.mlp.fc1"), "fc2": dense(f"{name}.mlp.fc2")},
        }

    return {
        "patch_embed": {"kernel": state["embeddings.patch_embedding.weight"].transpose(2, 3, 1, 0)},
        "cls_token": state["embeddings.class_embedding"],
        "pos_embed": state["embeddings.position_embedding.weight"],
        "pre_norm": norm("pre_layrnorm"),
        "blocks": {"layers": jax.tree.map(lambda *layers: np.stack(layers), *map(block, range(depth)))},
        "final_norm": norm("post_layernorm"),
        "head": {"kernel": state["visual_projection.weight"].T},
    }
