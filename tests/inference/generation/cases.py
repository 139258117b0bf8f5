"""Small language models for tests of generation, and the same weights in transformers."""

import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
from flax.core import meta

from seed_jax.convert.key_table import assemble
from seed_jax.convert.llama.key_table import abstract_params, key_table
from seed_jax.convert.tensors import Tensor, Tensors, open_tensors
from seed_jax.data.text.vocabulary import Vocabulary, train_small
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.generation.segments import ImageSegment, TextSegment
from seed_jax.models.llama.model import Llama, LlamaConfig
from tests.support import golden

GOLDEN = LlamaConfig(366, 64, 172, 3, 4, 4, max_length=256)
SMALL = LlamaConfig(366, 16, 24, 2, 2, 1, max_length=128)


@functools.cache
def vocabulary() -> Vocabulary:
    """Return a vocabulary with the sizes of the recorded model: 300 text tokens, 64 codes, <img> 364, </img> 365."""
    with tempfile.TemporaryDirectory() as directory:
        train_small(
            ["a cat on a mat in a hat", "a dog in the fog on a log"], Path(directory), vocab_size=300, num_codes=64
        )
        found = Vocabulary.load(directory)
    assert (found.size, found.boi, found.eoi) == (366, 364, 365)
    return found


@functools.cache
def small_params() -> dict:
    """Return random parameters, sharp enough for varied text, of a model that likes to begin images."""
    params = meta.unbox(jax.jit(Llama(SMALL).init)(jax.random.key(3), jnp.zeros((1, 2), jnp.int32)))["params"]
    params = jax.tree.map(lambda x: 30 * x if x.shape[-1] > 16 else x, params)
    params["lm_head"]["kernel"] = params["lm_head"]["kernel"].at[:, 364].multiply(3.0)
    return params


@functools.cache
def small() -> Generator:
    """Return one generator for all tests: what one of them compiles serves the others."""
    return Generator(SMALL, small_params(), vocabulary())


@functools.cache
def golden_generator() -> Generator:
    tensors = open_tensors(golden.path("llama_tiny/weights.safetensors"))
    return Generator(GOLDEN, assemble(key_table(GOLDEN), tensors, abstract_params(GOLDEN)), vocabulary())


def as_transformers(config: LlamaConfig, seed: int, spread: float = 0.7) -> transformers.LlamaForCausalLM:
    """Return a random model of transformers whose answers sometimes end early."""
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.max_length,
            initializer_range=spread,
            pad_token_id=0,
        )
    ).eval()
    with torch.no_grad():
        model.lm_head.weight[2] *= 2
    return model


def golden_transformers() -> transformers.LlamaForCausalLM:
    """Return the recorded model in transformers."""
    model = as_transformers(GOLDEN, 0)
    stored = {name: torch.tensor(array) for name, array in golden.tensors("llama_tiny/weights.safetensors").items()}
    model.load_state_dict({name: tensor for name, tensor in stored.items() if "inv_freq" not in name})
    return model


def from_transformers(model: transformers.LlamaForCausalLM, config: LlamaConfig) -> dict:
    """Return the parameters of a model of transformers as ours."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    tensors = Tensors({name: Tensor(a.shape, a.dtype, lambda a=a: a) for name, a in state.items()}, "test")
    return assemble(key_table(config), tensors, abstract_params(config))


def prompts(count: int, seed: int = 0, longest: int = 30) -> list[list[int]]:
    draw = np.random.default_rng(seed)
    return [[1, *draw.integers(3, 300, draw.integers(1, longest)).tolist()] for _ in range(count)]


def images_of(answer) -> int:
    """Return how many images an answer has, after checking that everything in it is text or a whole image."""
    assert all(isinstance(segment, (TextSegment, ImageSegment)) for segment in answer.segments), answer.segments
    found = [segment for segment in answer.segments if isinstance(segment, ImageSegment)]
    assert all(len(segment.codes) == 32 for segment in found)
    assert not {0, 1, 2} & set(answer.ids)
    return len(found)
