"""CLIP from Hugging Face files equals transformers' own, with random weights."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.convert.tokenizer import clip
from seed_jax.errors import UserError
from seed_jax.models.clip.text import ClipText
from seed_jax.models.tokenizer.vit import Vit

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# float32 on both sides: sums in another order move a value of size 1 by about 1e-6.
ATOL = 2e-5
VISION = {
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
    "projection_dim": 24,
}
TEXT = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 12,
}


def randomised(model):
    """Move every parameter off its initial value, norms and biases too."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def vision_model(activation="gelu"):
    config = transformers.CLIPVisionConfig(**VISION, hidden_act=activation)
    return randomised(transformers.CLIPVisionModelWithProjection(config))


def pictures():
    return np.random.default_rng(0).standard_normal((3, 28, 28, 3)).astype(np.float32)


def theirs(model, image):
    with torch.no_grad():
        return model(torch.from_numpy(image.transpose(0, 3, 1, 2).copy())).image_embeds.numpy()


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_image_embedding_equals_transformers(tmp_path, activation):
    model, image = vision_model(activation), pictures()
    model.save_pretrained(tmp_path)
    config, params = clip.import_vision(tmp_path)
    ours = Vit(config).apply({"params": params}, jnp.asarray(image), method="embed")
    np.testing.assert_allclose(ours, theirs(model, image), atol=ATOL)


def test_sharded_pytorch_files_and_the_whole_model_serve_too(tmp_path):
    config = transformers.CLIPConfig(
        text_config={**TEXT, "projection_dim": 24}, vision_config={**VISION, "hidden_act": "gelu"}, projection_dim=24
    )
    whole = randomised(transformers.CLIPModel(config))
    whole.config.save_pretrained(tmp_path)
    state = whole.state_dict()
    names = sorted(state)
    parts = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for file, members in parts.items():
        torch.save({name: state[name] for name in members}, tmp_path / file)
    index = {"weight_map": {name: file for file, members in parts.items() for name in members}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    sizes, params = clip.import_vision(tmp_path)
    image = pictures()
    with torch.no_grad():
        pixels = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
        want = whole.visual_projection(whole.vision_model(pixels).pooler_output).numpy()
    ours = Vit(sizes).apply({"params": params}, jnp.asarray(image), method="embed")
    np.testing.assert_allclose(ours, want, atol=ATOL)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_states_equal_transformers(tmp_path, prefix):
    config = transformers.CLIPTextConfig(**TEXT, hidden_act="quick_gelu", eos_token_id=59)
    model = randomised(transformers.CLIPTextModel(config))
    model.config.save_pretrained(tmp_path)
    # Files written by transformers before 5 have the prefix, later ones do not.
    state = {prefix + name.removeprefix("text_model."): value for name, value in model.state_dict().items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    ids = np.random.default_rng(1).integers(0, 60, (2, 12)).astype(np.int32)
    sizes, params = clip.import_text(tmp_path)
    ours = ClipText(sizes).apply({"params": params}, jnp.asarray(ids))
    with torch.no_grad():
        want = model(torch.from_numpy(ids).long()).last_hidden_state.numpy()
    np.testing.assert_allclose(ours, want, atol=ATOL)


def test_another_architecture_is_one_sentence(tmp_path):
    transformers.LlamaConfig(hidden_size=64, intermediate_size=8).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"lacks .*patch_size.*projection_dim"):
        clip.import_vision(tmp_path)


def test_a_missing_tensor_is_named(tmp_path):
    model = vision_model()
    state = model.state_dict()
    model.config.save_pretrained(tmp_path)
    del state["vision_model.encoder.layers.1.self_attn.k_proj.weight"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"missing: vision_model\.encoder\.layers\.1\.self_attn\.qkv_proj\.weight"):
        clip.import_vision(tmp_path)


def test_a_folder_without_weights(tmp_path):
    vision_model().config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="holds no weights"):
        clip.import_vision(tmp_path)
