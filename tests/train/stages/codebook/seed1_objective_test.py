"""Stage II of SEED-1 against a restatement in PyTorch: loss terms, gradients, an optimizer step (spec G)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional

from seed_jax.convert.tokenizer.key_table import key_table
from seed_jax.losses.next_token import WeightedSum
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizer, abstract_params
from seed_jax.train.config.tokenizer import ObjectiveConfig
from seed_jax.train.stage import LossOutput
from seed_jax.train.stages.codebook.objective import loss_terms
from seed_jax.train.stages.codebook.stage import CodebookStage
from tests.models.tokenizer.cases import imported_seed1, random_like, seed1_image
from tests.support import golden
from tests.support.configs import config_for
from tests.train.stages import official_steps as official

LOSS_ATOL = 1e-5  # float32 sums over 60,000 values; reached: 5e-7
GRADIENT_RTOL = 1e-4  # of each tensor's norm; reached: 5e-6
STEP_ATOL = 5e-5  # half a learning-rate step of 1e-4, where gradients near zero decide its sign
HEADS = 4
TERMS = ("embed", "reconstruction", "text")


@functools.cache
def setup():
    """Return (sizes, variables, batch): the recorded weights, with random blocks that reconstruct the embeddings."""
    tokenizer = imported_seed1()
    quiet = {name: dataclasses.replace(getattr(tokenizer.config, name), dropout=0.0) for name in ("qformer", "reverse")}
    sizes = dataclasses.replace(tokenizer.config, reconstruction=True, **quiet)
    fresh = {name: tree for name, tree in abstract_params(sizes).items() if name.startswith("recon")}
    params = jax.tree.map(jnp.asarray, {**tokenizer.params, **random_like(fresh)})
    target = np.random.default_rng(0).standard_normal((3, 77, 768), np.float32)
    return sizes, {"params": params}, {"image": seed1_image(), "target": jnp.asarray(target)}


def compute(variables, batch):
    model = SeedTokenizer(setup()[0])
    return loss_terms(ObjectiveConfig(), model, variables, batch["image"], None, text_target=batch["target"])


def stage():
    def loss(variables, batch, key):
        found = compute(variables, batch)
        return LossOutput(WeightedSum.from_terms(found.total, jnp.ones(3)), {})

    return official.LossStage(loss, CodebookStage(config_for("tokenizer_codebook:seed1_tiny")).is_trainable)


class Restatement:
    """The loss of stage II as the paper states it, on parameters by their official names."""

    def __init__(self, parameters):
        self.p = {name: torch.nn.Parameter(torch.from_numpy(np.array(value))) for name, value in parameters.items()}

    def linear(self, x, name):
        return functional.linear(x, self.p[f"{name}.weight"], self.p[f"{name}.bias"])

    def norm(self, x, name, epsilon):
        return functional.layer_norm(x, x.shape[-1:], self.p[f"{name}.weight"], self.p[f"{name}.bias"], epsilon)

    def mlp(self, x, first, second):
        return self.linear(functional.gelu(self.linear(x, first)), second)

    def attend(self, q, k, v):
        q, k, v = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def blocks(self, x, name):
        for i in range(4):
            block = f"{name}.{i}"
            q, k, v = self.linear(self.norm(x, f"{block}.norm1", 1e-6), f"{block}.attn.qkv").chunk(3, -1)
            x = x + self.linear(self.attend(q, k, v), f"{block}.attn.proj")
            x = x + self.mlp(self.norm(x, f"{block}.norm2", 1e-6), f"{block}.mlp.fc1", f"{block}.mlp.fc2")
        return x

    def cross(self, x, memory, name):
        q = self.linear(x, f"{name}.self.query")
        k, v = (self.linear(memory, f"{name}.self.{part}") for part in ("key", "value"))
        y = self.linear(self.attend(q, k, v), f"{name}.output.dense")
        return self.norm(y + x, f"{name}.output.LayerNorm", 1e-12)

    def reverse(self, memory):
        bert = "Reverse_Qformer.bert."
        x = self.norm(self.p["reverse_tokens"].expand(len(memory), -1, -1), f"{bert}embeddings.LayerNorm", 1e-12)
        for i in range(4):
            layer = f"{bert}encoder.layer.{i}"
            x = self.cross(x, x, f"{layer}.attention")
            if i % 2 == 0:
                x = self.cross(x, memory, f"{layer}.crossattention")
            y = self.mlp(x, f"{layer}.intermediate_query.dense", f"{layer}.output_query.dense")
            x = self.norm(y + x, f"{layer}.output_query.LayerNorm", 1e-12)
        return x

    def terms(self, embeddings, target):
        """Return the weighted terms; embeddings are the frozen Q-Former's."""
        p = self.p
        z = self.linear(torch.tanh(self.linear(embeddings, "encode_task_layer.0")), "encode_task_layer.2")
        codebook = p["quantize.embedding.weight"]
        codes = torch.cdist(z.flatten(0, 1), codebook).argmin(-1).view(z.shape[:2])
        nearest = codebook[codes]
        embed = (nearest.detach() - z).square().mean() + 0.25 * (nearest - z.detach()).square().mean()
        quantized = z + (nearest - z).detach()
        up = self.linear(torch.tanh(self.linear(quantized, "decode_task_layer.0")), "decode_task_layer.2")
        rebuilt = self.blocks(up + p["pos_embed"], "blocks")
        states = self.linear(self.reverse(self.blocks(up + p["pos_embed_text"], "blocks_text")), "distill_text_proj")
        return {
            "embed": 5 * embed,
            "reconstruction": 2 * (1 - functional.cosine_similarity(rebuilt, embeddings, dim=-1)).mean(),
            "text": 0.5 * functional.mse_loss(states, target),
        }


@functools.cache
def restated():
    """Return PyTorch's loss terms, gradients, and parameters after a step of AdamW at the rate of 1e-4."""
    sizes, variables, batch = setup()
    encoded = jax.jit(functools.partial(SeedTokenizer(sizes).apply, method="encode"))(variables, batch["image"])
    # The encoder is frozen, and `seed1_test` compares it with the original's.
    trained = {name: tree for name, tree in variables["params"].items() if name not in ("vit", "ln_vision", "qformer")}
    model = Restatement(official.named(key_table(sizes), trained))
    groups = [
        {"params": [p for p in model.p.values() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in model.p.values() if p.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.999), eps=1e-8)
    embeddings, target = (torch.from_numpy(np.array(x)) for x in (encoded.embeddings, batch["target"]))
    terms = model.terms(embeddings, target)
    sum(terms.values()).backward()
    gradients = {name: p.grad.numpy().copy() for name, p in model.p.items()}
    optimizer.step()
    return terms, gradients, {name: p.detach().numpy() for name, p in model.p.items()}


@pytest.mark.slow
def test_every_term():
    _, variables, batch = setup()
    found = jax.jit(compute)(variables, batch)
    terms, _, _ = restated()
    assert tuple(found.by_name()) == TERMS  # and no distance to an image embedding
    for name, value in terms.items():
        assert float(found.by_name()[name].mean()) == pytest.approx(value.item(), abs=LOSS_ATOL), name
    np.testing.assert_array_equal(found.encoded.codes, golden.tensors("seed1_tiny/outputs.safetensors")["indices"])


@pytest.mark.slow
def test_gradients():
    sizes, variables, batch = setup()
    found = official.gradient_function(stage(), key_table(sizes))(variables, batch)
    _, expected, _ = restated()
    official.assert_gradients(found, expected, GRADIENT_RTOL)
    assert found.keys() == expected.keys()  # nothing else is trained


@pytest.mark.slow
def test_one_step():
    sizes, variables, batch = setup()
    after = official.steps(stage(), variables, batch, 1)
    _, gradients, expected = restated()
    official.assert_parameters(official.named(key_table(sizes), after["params"]), expected, gradients, STEP_ATOL)
