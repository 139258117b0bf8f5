import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.core import meta

from seed_jax.convert import key_table as tables
from seed_jax.convert.diffusion.diffusers_import import key_table
from seed_jax.convert.tensors import Tensor, Tensors
from seed_jax.errors import UserError
from seed_jax.models.clip.text import ClipText, ClipTextConfig
from tests.models.diffusion.cases import decoder, error, tensors


@pytest.mark.parametrize("prompt", ["empty", "text"])
def test_states_equal_the_originals(prompt):
    unclip, params = decoder()
    pieces = tensors("pieces")
    states = jax.jit(unclip.text_states)(params, pieces[f"input_ids_{prompt}"])
    # The original's own float32 error is 1.6e-6; values reach 3.5.
    assert error(states, pieces[f"text_last_hidden_state_{prompt}"]) < 1e-5


def test_quick_gelu_equals_pytorch():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = ClipTextConfig(99, 32, 64, 2, 4, max_length=12, activation="quick_gelu")
    theirs = transformers.CLIPTextModel(
        transformers.CLIPTextConfig(
            vocab_size=99, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=12, hidden_act="quick_gelu", bos_token_id=1, eos_token_id=2,
        )
    ).eval()  # fmt: skip
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.manual_seed(parameter.numel()))
    tokens = np.arange(24).reshape(2, 12)
    model = ClipText(config)
    shapes = meta.unbox(jax.eval_shape(model.init, jax.random.key(0), jnp.asarray(tokens)))["params"]
    state = {
        f"text_model.{name.removeprefix('text_model.')}": value.numpy() for name, value in theirs.state_dict().items()
    }
    found = Tensors({name: Tensor(v.shape, v.dtype, lambda v=v: v) for name, v in state.items()}, "memory")
    params = tables.assemble(key_table("text", shapes), found, shapes)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(tokens)).last_hidden_state.numpy()
    assert error(model.apply({"params": params}, jnp.asarray(tokens)), expected) < 2e-5  # values reach 4


def test_a_token_sees_no_later_one():
    model = ClipText(ClipTextConfig(20, 8, 16, 2, 2, max_length=5))
    tokens = jnp.array([[3, 4, 5, 6, 7]])
    params = jax.jit(model.init)(jax.random.key(0), tokens)
    run = jax.jit(model.apply)
    changed = run(params, tokens.at[0, 3].set(9)) - run(params, tokens)
    assert np.abs(changed).max(-1)[0, :3].max() == 0
    assert np.abs(changed).max(-1)[0, 3:].min() > 0


@pytest.mark.parametrize(("config", "count"), [("open_clip_h", 340_387_840), ("vit_l", 123_060_480)])
def test_released_sizes(config, count):
    model = ClipText(getattr(ClipTextConfig, config)())
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 77), jnp.int32))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == count


def test_unknown_activation_is_refused():
    with pytest.raises(UserError, match="'relu'"):
        ClipTextConfig(activation="relu")
