"""SEED-OPT: the loss against a restatement in PyTorch, what trains, generation in both directions, refusals."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from seed_jax.checkpoint import model_dir
from seed_jax.data.shards.records import Record
from seed_jax.data.templates import make_template
from seed_jax.errors import UserError
from seed_jax.inference.chat.prompts import USER, Message, build_prompt
from seed_jax.inference.generation.segments import ImageSegment, TextSegment
from seed_jax.inference.seed_llama import SeedLlama
from seed_jax.models.tokenizer.config import SeedTokenizerConfig
from seed_jax.train import loop
from seed_jax.train.stages.seed_opt import SeedOptStage
from tests.data.batches import mixtures
from tests.models.opt.cases import GOLDEN, golden_params, vocabulary
from tests.support import configs, golden, meshes

CODES, WIDTH, WORDS = 64, 8, 500
CAPTIONS = ("a dog", "two cats", "the street")
RNG = np.random.default_rng(0)
IMAGES = [RNG.integers(0, CODES, 32).astype(np.uint16) for _ in CAPTIONS]
CODEBOOK = RNG.standard_normal((CODES, WIDTH), np.float32)


@pytest.fixture(scope="module", autouse=True)
def one_device():
    with meshes.on_devices(1):
        yield


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Return a directory with an OPT without image tokens, its plain vocabulary, a codebook, and shards."""
    directory = tmp_path_factory.mktemp("seed_opt")
    vocabulary().save(directory / "vocabulary")
    (directory / "vocabulary/added_tokens.json").unlink()
    sizes = {**GOLDEN.to_dict(), "vocab_size": WORDS}
    params = golden_params()
    rows = params["embed_tokens"]["embedding"]
    table = jnp.zeros((512, rows.shape[1])).at[:WORDS].set(rows[:WORDS])
    model_dir.save(
        directory / "opt",
        "opt",
        {"sizes": sizes, "image_tokenizer": None},
        {**params, "embed_tokens": {"embedding": table}},
    )
    tokenizer = {**SeedTokenizerConfig.tiny("text_features").to_dict(), "num_codes": CODES, "code_width": WIDTH}
    model_dir.save(directory / "tokenizer", "seed_tokenizer", {"sizes": tokenizer}, {"codebook": CODEBOOK})
    records = (Record(f"a/{i}", "a", (IMAGES[i % 3], CAPTIONS[i % 3]), {}) for i in range(24))
    mixtures.write(directory / "pairs", records)
    return directory


def run_config(parts, **changes):
    component = {"path": str(parts / "pairs"), "weight": 1.0, "params": {"max_length": 90}}
    options = {
        "data.demo": False, "data.vocabulary": str(parts / "vocabulary"), "data.sequence_length": 96,
        "data.mixture": ({**component, "task": "seed1.caption"}, {**component, "task": "seed1.image"}),
        "model.init": str(parts / "opt"), "model.code_vectors": str(parts / "tokenizer"), "model.train": "adapters",
        "optimizer.peak_lr": 1e-2, "steps": 8, "log_every": 1, "checkpoint.every_steps": 8,
    }  # fmt: skip
    return configs.config_for("pretrain_opt:tiny", **{**options, **changes})


@pytest.fixture(scope="module")
def run(parts, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("seed_opt") / "run"
    loop.train(run_config(parts), workdir)
    return workdir


@pytest.mark.slow
def test_it_learns_and_the_words_stay(parts, run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if "loss" in row]
    assert losses[-1] < 0.9 * losses[0]
    assert losses[0] < 2 * np.log(566)
    before, after = model_dir.load(parts / "opt").params, model_dir.load(run).params["params"]
    table = np.asarray(after["embed_tokens"]["embedding"])
    np.testing.assert_array_equal(table[:WORDS], np.asarray(before["embed_tokens"]["embedding"])[:WORDS])
    assert np.ptp(table[WORDS:566], axis=1).all()  # 64 codes and two delimiters
    np.testing.assert_array_equal(after["code_vectors"], CODEBOOK)
    for name in ("layers", "final_layer_norm", "embed_positions"):
        jax.tree.map(np.testing.assert_array_equal, after[name], before[name])
    config = json.loads((run / "model/config.json").read_text())
    assert (config["prompt_style"], config["image_tokenizer"]) == ("seed1", str(parts / "tokenizer"))


@pytest.mark.slow
def test_generation_both_ways(run):
    model = SeedLlama.load(run)
    image = ImageSegment(tuple(map(int, IMAGES[0])))
    vocabulary = model.generator.vocabulary
    prompt = build_prompt([Message(USER, [image])], model.style, vocabulary)
    (caption,) = model.generator.generate([prompt], mode="text", max_new_tokens=8)
    assert all(isinstance(segment, TextSegment) for segment in caption.segments)
    # The image matters: it is not ignored like an unknown token.
    other = build_prompt([Message(USER, [ImageSegment((0,) * 32)])], model.style, vocabulary)
    model_of = model.generator.model
    logits = [
        jax.jit(model_of.apply)({"params": model.generator.params}, jnp.asarray([ids]))[0, -1]
        for ids in (prompt, other)
    ]
    assert np.abs(logits[0] - logits[1]).max() > 1e-3
    answer = model.ask("a dog", num_images=1, max_new_tokens=40)
    assert [len(part.codes) for part in answer.segments if isinstance(part, ImageSegment)] == [32]


def test_prompts_are_those_of_training():
    words = vocabulary()
    rng = np.random.default_rng(0)
    fields = {"image_ids": IMAGES[0], "text": "a dog"}
    image = ImageSegment(tuple(map(int, IMAGES[0])))
    for task, segment in (("seed1.caption", image), ("seed1.image", TextSegment("a dog"))):
        sample = make_template(task, {}, words)(fields, rng)
        prompt = build_prompt([Message(USER, [segment])], "seed1", words)
        np.testing.assert_array_equal(sample.tokens[: len(prompt)], prompt)
        np.testing.assert_array_equal(sample.loss_mask, np.arange(len(sample)) >= len(prompt))
    caption, drawn = (
        make_template(task, {}, words)(fields, rng).tokens.tolist() for task in ("seed1.caption", "seed1.image")
    )
    assert caption == [
        2, *(566 + IMAGES[0].astype(int)), *words.encode("A photo of"), *words.encode(" a dog"), 2,
    ]  # fmt: skip
    assert drawn == [2, *words.encode("Generate an image a dog"), 564, *(500 + IMAGES[0].astype(int)), 565, 2]


def test_the_loss_is_that_of_pytorch(parts, tmp_path):
    """One linear layer on the code vectors in front of the embedded prefix; targets only (spec G)."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    config = run_config(parts, **{"lora.dropout": 0.0})
    stage = SeedOptStage(config)
    stage.prepare(tmp_path)
    params = golden_params()  # with image tokens
    rng = np.random.default_rng(1)
    kernel, bias = rng.standard_normal((WIDTH, 32), np.float32), rng.standard_normal(32, np.float32)
    params = {
        **params,
        "code_vectors": jnp.asarray(CODEBOOK),
        "code_proj": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(bias)},
    }
    words = vocabulary()
    samples = [
        make_template(task, {}, words)({"image_ids": image, "text": text}, rng)
        for task, image, text in zip(("seed1.caption", "seed1.image", "seed1.caption"), IMAGES, CAPTIONS, strict=True)
    ]
    length = max(map(len, samples))
    batch = {name: np.zeros((3, length), np.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
    batch["loss_mask"] = np.zeros((3, length), bool)
    for row, sample in enumerate(samples):
        count = len(sample)
        batch["tokens"][row, :count] = sample.tokens
        batch["targets"][row, : count - 1] = sample.tokens[1:]
        batch["loss_mask"][row, : count - 1] = sample.loss_mask[1:]
        batch["segment_ids"][row, :count], batch["positions"][row, :count] = 1, np.arange(count)

    def compute(params):
        return stage.loss({"params": params}, jax.tree.map(jnp.asarray, batch), jax.random.key(0)).total.mean

    loss, gradients = jax.jit(jax.value_and_grad(compute))(params)

    settings = golden.load_json("opt_tiny/config.json")
    model = transformers.OPTForCausalLM(transformers.OPTConfig(**settings)).eval()
    weights = {name: torch.from_numpy(array) for name, array in golden.tensors("opt_tiny/model.safetensors").items()}
    model.load_state_dict(weights, strict=False)
    table = model.get_input_embeddings().weight
    projection = torch.nn.Linear(WIDTH, 32)
    with torch.no_grad():
        projection.weight.copy_(torch.from_numpy(kernel.T))
        projection.bias.copy_(torch.from_numpy(bias))
    total, weight = 0.0, 0
    for sample in samples:
        ids = torch.from_numpy(sample.tokens).long()
        is_vector = ids >= 566
        vectors = projection(torch.from_numpy(CODEBOOK)[(ids - 566)[is_vector]])
        embedded = table[torch.where(is_vector, 0, ids)].clone()
        embedded[is_vector] = vectors
        logits = model(inputs_embeds=embedded[None]).logits[0, :-1]
        each = torch.nn.functional.cross_entropy(logits, torch.where(is_vector, 0, ids)[1:], reduction="none")
        mask = torch.from_numpy(sample.loss_mask[1:])
        total, weight = total + (each * mask).sum(), weight + mask.sum()
    expected = total / weight
    assert float(loss) == pytest.approx(expected.item(), abs=1e-5)  # float32 means of some 50 targets
    expected.backward()
    theirs = {"kernel": projection.weight.grad.numpy().T, "bias": projection.bias.grad.numpy()}
    for name, gradient in theirs.items():
        np.testing.assert_allclose(gradients["code_proj"][name], gradient, atol=1e-5 * np.abs(gradient).max() + 1e-7)
    ours = np.asarray(gradients["embed_tokens"]["embedding"])[:566]
    assert not ours[:WORDS].any()  # words are frozen
    np.testing.assert_allclose(ours[WORDS:], table.grad.numpy()[WORDS:], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "key_words"),
    [
        ({"model.code_vectors": ""}, "model.code_vectors is empty"),
        ({"model.code_vectors": "/nowhere"}, "model.code_vectors /nowhere does not exist"),
        ({"model.config": "tiny", "model.init": ""}, "'tiny', which does not belong to stage 'pretrain_opt'"),
        ({"data.vocabulary": "/nowhere"}, "facebook/opt-2.7b"),
    ],
)
def test_bad_settings_are_one_sentence(parts, tmp_path, changes, key_words):
    with pytest.raises(UserError, match=key_words):
        loop.train(run_config(parts, **changes), tmp_path)


def test_other_stages_refuse_its_options():
    with pytest.raises(UserError, match="for stage 'pretrain_opt'"):
        configs.config_for("pretrain:tiny", **{"model.train": "adapters"})
    with pytest.raises(UserError, match="no variant 'huge'"):
        configs.config_for("pretrain_opt:huge")


def test_a_model_without_code_vectors_refuses_the_style(parts, tmp_path):
    sizes, params = GOLDEN, golden_params()
    model_dir.save(tmp_path / "opt", "opt", {"sizes": sizes.to_dict(), "image_tokenizer": None}, params)
    vocabulary().save(tmp_path / "opt")
    with pytest.raises(UserError, match="does not read"):
        SeedLlama.load(tmp_path / "opt", style="seed1")
