"""Sizes that no model has are refused when a config is read, before anything of that size is made."""

import time
from typing import Any

import pytest

from seed_jax.errors import UserError
from seed_jax.models.config_io import from_dict, to_dict
from seed_jax.models.diffusion import StableDiffusionConfig, UnclipConfig
from seed_jax.models.llama.config import LlamaConfig
from seed_jax.models.nn import lora
from seed_jax.models.opt.config import OptConfig
from seed_jax.models.tokenizer.config import SeedTokenizerConfig
from seed_jax.models.tokenizer.image_text import ImageTextConfig
from seed_jax.models.tokenizer.text_branch import TextBranchConfig
from seed_jax.models.tokenizer.vit import VitConfig

CONFIGS = [
    *(LlamaConfig.seed_14b(), OptConfig.seed_2b7(), SeedTokenizerConfig.full(), SeedTokenizerConfig.seed1()),
    *(SeedTokenizerConfig.tiny("reverse_qformer"), ImageTextConfig(), TextBranchConfig(), VitConfig.clip()),
    *(UnclipConfig.full(), UnclipConfig.small(), StableDiffusionConfig(), lora.LoraSpec(("q_proj",))),
]


def with_each(tree: Any, kind: type, value: Any):
    """Yield copies of a tree of dicts and lists in which one leaf of the type `kind` is replaced."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, inner in items:
        for changed in [value] if type(inner) is kind else with_each(inner, kind, value):
            if isinstance(tree, dict):
                yield {**tree, key: changed}
            else:
                yield [*tree[:key], changed, *tree[key + 1 :]]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: type(config).__name__)
def test_absurd_sizes_are_refused_at_once(config):
    sizes = to_dict(config)
    assert from_dict(type(config), sizes) == config
    started = time.process_time()
    count = 0
    for value in (10**9, -1):
        for changed in with_each(sizes, int, value):
            count += 1
            with pytest.raises(UserError, match="should hold an integer from"):
                from_dict(type(config), changed, "config.json")
    for changed in with_each(sizes, float, float("nan")):
        with pytest.raises(UserError, match="finite"):
            from_dict(type(config), changed, "config.json")
    seconds = time.process_time() - started
    assert count
    assert seconds / count < 0.1


def test_a_million_layers_and_long_lists_are_refused():
    with pytest.raises(UserError, match=r"num_layers.*1 to 1024"):
        LlamaConfig.from_dict({**LlamaConfig.seed_8b().to_dict(), "num_layers": 10**6})
    sizes = UnclipConfig.full().to_dict()
    for name, values in [("block_channels", [320] * 10**6), ("num_heads", [0] * 4), ("cross_attention", ["a"])]:
        with pytest.raises(UserError, match=name):
            UnclipConfig.from_dict({**sizes, "unet": {**sizes["unet"], name: values}})


def test_messages_are_short_whatever_the_value():
    with pytest.raises(UserError) as raised:
        LlamaConfig.from_dict({**LlamaConfig.seed_8b().to_dict(), "hidden_size": "x" * 10**6})
    assert len(str(raised.value)) < 500


def test_adapters_of_a_model_directory():
    spec = lora.read_spec({"rank": 4, "alpha": 8, "dropout": 0.0}, "config.json", ["q_proj"])
    assert spec == lora.LoraSpec(("q_proj",), 4, 8.0, 0.0)
    for settings in (3, {}, {"rank": 0, "alpha": 8.0, "dropout": 0.0}, {"rank": 10**9, "alpha": 8.0, "dropout": 0.0}):
        with pytest.raises(UserError, match="lora"):
            lora.read_spec(settings, "config.json", ["q_proj"])
