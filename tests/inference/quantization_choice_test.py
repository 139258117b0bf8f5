"""The most accurate choice that fits is taken; the released sizes fit where the paper's readers expect them to."""

import dataclasses

import pytest

from seed_jax.checkpoint import model_dir
from seed_jax.doctor import cases
from seed_jax.errors import UserError
from seed_jax.inference.memory_plan import GIB
from seed_jax.inference.quantization_choice import choices, choose_quantization, released_choices, table
from seed_jax.inference.seed_llama import LoadConfig
from seed_jax.models.llama.config import LlamaConfig

WIDE = dataclasses.replace(cases.LLAMA, hidden_size=512, intermediate_size=1024, max_length=64)  # weights dominate


@pytest.fixture
def config(tmp_path):
    """A language model of which only the config is there: planning reads nothing else."""
    model_dir.save(tmp_path / "llama", "llama", {"sizes": WIDE.to_dict(), "image_tokenizer": None}, None)
    return LoadConfig(tmp_path / "llama")


def test_the_most_accurate_choice_that_fits_is_taken(config):
    planned = {choice.name: choice for choice in choices(config)}
    sizes = [planned[name].plan.peak for name in ("float32", "int8", "int4")]
    assert sizes == sorted(sizes, reverse=True)
    assert choose_quantization(config, sizes[0]).quantize is None
    assert choose_quantization(config, sizes[0] - 1).options == "--quantize int8"
    assert choose_quantization(config, sizes[1] - 1).quantize == "int4"
    with pytest.raises(UserError, match="of memory"):
        choose_quantization(config, sizes[2] // 2)


def test_the_table_says_what_fits(config):
    planned = choices(config)
    lines = table(planned, planned[1].plan.peak)
    assert [line.rsplit(": ", 1)[1] for line in lines[:2]] == ["does not fit", "fits"]
    assert all("unknown" in line for line in table(planned, None))


def test_the_8b_fits_16_gib_with_int8():
    planned = {
        choice.name: choice for choice in released_choices(LlamaConfig.seed_8b(), dtype="bfloat16", decoder=False)
    }
    assert not planned["bfloat16"].fits(16 * GIB)
    assert planned["int8"].fits(16 * GIB)
    assert planned["int4"].plan.peak < planned["int8"].plan.peak
