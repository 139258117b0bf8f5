"""Packing does not change the loss."""

import jax
import numpy as np
import pytest

from seed_jax.data import templates
from seed_jax.data.batches.packing import empty_batch, fill_row, pack
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.losses.next_token import next_token_loss
from seed_jax.models.llama.model import Llama, LlamaConfig
from seed_jax.precision import Precision
from seed_jax.sharding import unbox
from tests.support import golden

LENGTH = 160


@pytest.fixture(scope="module")
def samples():
    """Captions, an instruction and a document in three pieces; twelve rows if each sample has its own."""
    vocab = Vocabulary.load(golden.path("text_tokenizer/tokenizer"))
    rng = np.random.default_rng(0)
    pair = templates.make("image_text_pair", {}, vocab)
    qa = templates.make("sft.qa", {}, vocab)
    text = templates.make("pretrain.text", {"continued": True, "max_length": LENGTH}, vocab)
    image = {"image_ids": np.arange(32)}
    found = [pair({**image, "text": "a dog in the grass " * int(rng.integers(1, 4))}, rng) for _ in range(8)]
    found.append(qa({**image, "question": "what is it?", "answer": "a dog"}, rng))
    return [*found, *text.samples({"text": "the dog rests by the river. " * 40}, rng)]


def test_packed_and_unpacked_give_the_same_loss(samples):
    vocab = Vocabulary.load(golden.path("text_tokenizer/tokenizer"))
    config = LlamaConfig(vocab.size, 32, 64, 2, 2, 2, max_length=LENGTH)
    model = Llama(config, precision=Precision())
    packed, alone = (empty_batch(len(samples), LENGTH) for _ in range(2))  # of one shape, compiled once
    rows = pack(samples, LENGTH)
    assert len(rows["tokens"]) < len(samples)
    for row, sample in enumerate(samples):
        fill_row(alone, row, [sample])
    for name, array in rows.items():
        packed[name][: len(array)] = array
    variables = unbox(jax.jit(model.init)(jax.random.key(0), packed["tokens"][:1]))

    @jax.jit
    def loss(batch):
        hidden = model.apply(variables, batch["tokens"], batch["segment_ids"], batch["positions"], method="features")
        kernel = variables["params"]["lm_head"]["kernel"]
        total = next_token_loss(
            hidden,
            kernel,
            batch["targets"],
            batch["loss_mask"],
            vocab_size=vocab.size,
            split=batch["targets"] >= vocab.first_code,
            chunk=32,
            precision=Precision(),
        ).total
        return total.sum, total.weight

    sums, weights = zip(*(loss(batch) for batch in (packed, alone)), strict=True)
    assert float(weights[0]) == float(weights[1]) > 500
    means = [float(total / weight) for total, weight in zip(sums, weights, strict=True)]
    # 1e-5 of a loss near 6.7: float32, sums in another order.
    assert means[0] == pytest.approx(means[1], rel=1e-5)
    # And the other way round: without the segments' borders the loss would differ by much more.
    mixed = {**packed, "segment_ids": np.minimum(packed["segment_ids"], 1)}
    total, weight = loss(mixed)
    assert abs(float(total / weight) - means[1]) > 3e-4
