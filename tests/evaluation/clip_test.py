"""CLIP's towers give transformers' embeddings with random weights."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from seed_jax.cli import main
from seed_jax.errors import UserError
from seed_jax.evaluation.clip import ClipModel
from tests.evaluation import datasets


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("clip")
    return directory, *datasets.write_clip(directory)


def test_embeddings_equal_transformers(folder):
    directory, model, tokenizer = folder
    clip = ClipModel(directory)
    pixels = np.random.Generator(np.random.Philox(1)).integers(0, 255, (3, 40, 57, 3), np.uint8)
    images = [Image.fromarray(one) for one in pixels]
    processor = transformers.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    texts = ["a dog", "the cat in the hat", ""]
    tokens = tokenizer(texts, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        vision = model.vision_model(processor(images, return_tensors="pt")["pixel_values"])
        expected_images = model.visual_projection(vision.pooler_output).numpy()
        states = model.text_model(tokens["input_ids"]).last_hidden_state
        last = states[torch.arange(3), (tokens["input_ids"] == tokenizer.eos_token_id).int().argmax(-1)]
        expected_texts = model.text_projection(last).numpy()
    np.testing.assert_allclose(clip.embed_images(images), expected_images, atol=2e-4)
    np.testing.assert_allclose(clip.embed_texts(texts), expected_texts, atol=2e-4)


def test_a_folder_without_a_text_tower_reads_images_only(folder, tmp_path):
    for file in folder[0].iterdir():
        if file.suffix != ".txt" and file.name != "vocab.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    assert not ClipModel(tmp_path).reads_text
    with pytest.raises(UserError, match=r"vocab\.json"):
        ClipModel(tmp_path).embed_texts(["a"])


def test_cmmd_of_equal_directories_is_zero(folder, tmp_path, capsys):
    for name in ("one", "other"):
        for number in range(3):
            datasets.write_image(tmp_path / name / f"{number}.png", number)
    words = ["--images", tmp_path / "one", "--reference", tmp_path / "other", "--clip", folder[0]]
    assert main(["eval", "score", "cmmd", *map(str, words)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"cmmd": pytest.approx(0, abs=1e-6), "images": 3, "reference_images": 3}
    (tmp_path / "empty").mkdir()
    words[3] = tmp_path / "empty"
    assert main(["eval", "score", "cmmd", *map(str, words)]) == 2
