import dataclasses
import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType
from PIL import Image

from seed_jax import images
from seed_jax.checkpoint import model_dir
from seed_jax.errors import UserError
from seed_jax.inference.image_tokenizer import ImageTokenizer, Preprocessing, map_in_groups
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizer, SeedTokenizerConfig, abstract_params
from seed_jax.precision import Precision
from tests.models.tokenizer.cases import imported, random_like, recorded

CONFIG = SeedTokenizerConfig.tiny()
PARAMS = random_like(abstract_params(CONFIG))


def sample_images(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    # Coarse noise: fine noise would average out in the resize and leave the same grey for all.
    return [Image.fromarray(rng.integers(0, 255, (4, 5, 3), np.uint8)).resize((70, 60), 0) for _ in range(count)]


@pytest.fixture(scope="module")
def tokenizer() -> ImageTokenizer:
    return ImageTokenizer(CONFIG, PARAMS, batch_size=3)


@pytest.fixture(scope="module")
def codes() -> np.ndarray:
    """Codes of seven images by the model itself."""
    batch = jnp.stack([images.preprocess(image, CONFIG.image_size) for image in sample_images(7)])
    encode = jax.jit(lambda x: SeedTokenizer(CONFIG).apply({"params": PARAMS}, x, method="encode").codes)
    found = np.asarray(encode(batch))
    assert len(np.unique(found, axis=0)) == 7
    return found


def test_batches_are_padded_and_compiled_once(tokenizer, codes):
    np.testing.assert_array_equal(tokenizer.encode(sample_images(1)), codes[:1])
    compiled = tokenizer.encode_program._cache_size()  # other tests share it
    np.testing.assert_array_equal(tokenizer.encode(sample_images(7)), codes)  # 3 + 3 + 1
    np.testing.assert_array_equal(tokenizer.encode(sample_images(7)[:2]), codes[:2])
    assert tokenizer.encode([]).shape == (0, 32)
    assert tokenizer.encode([]).dtype == np.int32
    assert tokenizer.encode_program._cache_size() == compiled


def test_other_weights_of_the_same_sizes_need_no_compilation(tokenizer, codes):
    tokenizer.encode(sample_images(1))
    compiled = tokenizer.encode_program._cache_size()
    params = jax.tree.map(lambda leaf: 0.9 * leaf[::-1], PARAMS)
    other = ImageTokenizer(CONFIG, params, batch_size=3)
    assert (other.encode(sample_images(7)) != codes).any()
    assert other.encode_program._cache_size() == compiled
    np.testing.assert_array_equal(tokenizer.encode(sample_images(7)), codes)


def test_images_are_given_in_any_form(tokenizer, codes, tmp_path):
    image = sample_images(1)[0]
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(buffer.getvalue())
    opaque = image.copy()
    opaque.putalpha(255)
    forms = [image, np.asarray(image), buffer.getvalue(), str(path), path, io.BytesIO(buffer.getvalue()), opaque]
    np.testing.assert_array_equal(tokenizer.encode(forms), np.repeat(codes[:1], len(forms), 0))
    for form in (str(path), image, np.asarray(image)):
        np.testing.assert_array_equal(tokenizer.encode(form), codes[:1])


def test_stream_keeps_order_and_reports_bad_images(tokenizer, codes, tmp_path):
    items = []
    for index, image in enumerate(sample_images(7)):
        image.save(tmp_path / f"{index}.png")
        items.append((f"key {index}", tmp_path / f"{index}.png"))
    buffer = io.BytesIO()
    sample_images(7)[6].save(buffer, "PNG")
    items[6] = ("key 6", buffer.getvalue())
    items[4] = ("key 4", tmp_path / "absent.png")
    coded = list(tokenizer.encode_stream(iter(items), workers=2))
    assert [c.key for c in coded] == [key for key, _ in items]
    assert coded[4].codes is None
    assert "key 4" in coded[4].error
    assert "No such file" in coded[4].error
    good = [0, 1, 2, 3, 5, 6]
    assert all(coded[i].error is None for i in good)
    np.testing.assert_array_equal([coded[i].codes for i in good], codes[good])


def test_stream_reads_only_a_little_ahead(tokenizer):
    taken = []

    def endless():
        buffer = io.BytesIO()
        sample_images(1)[0].save(buffer, "PNG")
        while True:
            taken.append(None)
            yield len(taken), buffer.getvalue()

    stream = tokenizer.encode_stream(endless())
    assert next(stream).key == 1
    stream.close()
    assert len(taken) <= 4 * tokenizer.batch_size + 1


def test_mesh_gives_the_same_codes(codes):
    mesh = jax.make_mesh((4, 2), ("replica", "fsdp"), (AxisType.Auto,) * 2)
    spread = ImageTokenizer(CONFIG, PARAMS, batch_size=3, mesh=mesh)
    assert spread.batch_size == 8
    np.testing.assert_array_equal(spread.encode(sample_images(7)), codes)
    assert len(spread.put_batch([np.zeros(32, np.int32)]).sharding.device_set) == 8


def test_embed_codes_equals_the_original():
    original = imported("qformer_image")
    tokenizer = ImageTokenizer(original.config, original.params, batch_size=3)
    expected = recorded("qformer_image")
    ours = tokenizer.embed_codes(expected["indices"])
    assert ours.dtype == np.float32
    np.testing.assert_allclose(ours, expected["generation_embedding"], atol=5e-5)  # the golden's tolerance
    assert tokenizer.embed_codes(np.zeros((0, 32), np.int32)).shape == (0, 24)


@pytest.mark.parametrize("bad", [np.zeros((1, 31), np.int32), np.full((1, 32), 128), np.full((1, 32), -1)])
def test_impossible_codes_are_refused(tokenizer, bad):
    with pytest.raises(UserError, match="expected 32 codes from 0 to 127"):
        tokenizer.embed_codes(bad)


def test_bfloat16_stores_matrices_once_and_gives_what_the_model_gives():
    precision = Precision(compute="bfloat16")
    tokenizer = ImageTokenizer(CONFIG, PARAMS, precision=precision, batch_size=7)
    stored = {name: str(leaf.dtype) for name, leaf in flatten_dict(tokenizer.params, sep="/").items()}
    assert stored["vit/blocks/layers/attn/qkv/kernel"] == "bfloat16"
    assert {stored[name] for name in ("codebook", "encode_task/fc2/kernel", "ln_vision/scale")} == {"float32"}
    pixels = jnp.asarray(np.stack([tokenizer.pixels(image) for image in sample_images(7)]))
    model = SeedTokenizer(CONFIG, precision)
    encode = jax.jit(lambda x: model.apply({"params": PARAMS}, images.normalize(x), method="encode").codes)
    np.testing.assert_array_equal(tokenizer.encode(sample_images(7)), encode(pixels))


def test_fingerprint_depends_on_weights_sizes_and_preprocessing(tokenizer):
    moved = {**PARAMS, "codebook": PARAMS["codebook"].at[0, 0].add(1e-3)}
    other_sizes = dataclasses.replace(CONFIG, ln_vision_epsilon=1e-6)
    others = [
        ImageTokenizer(CONFIG, moved),
        ImageTokenizer(other_sizes, PARAMS),
        ImageTokenizer(CONFIG, PARAMS, preprocessing=Preprocessing("bicubic")),
    ]
    assert len({t.fingerprint for t in [tokenizer, *others]}) == 4
    # Batch size and compute format change neither the meaning of codes nor the fingerprint.
    same = ImageTokenizer(
        CONFIG, jax.tree.map(np.asarray, PARAMS), batch_size=5, precision=Precision(compute="bfloat16")
    )
    assert same.fingerprint == tokenizer.fingerprint


def test_load_reads_a_model_directory(tokenizer, codes, tmp_path):
    directory = model_dir.save(tmp_path / "model", "seed_tokenizer", {"sizes": CONFIG.to_dict()}, PARAMS)
    loaded = ImageTokenizer.load(directory, batch_size=4)
    assert loaded.fingerprint == tokenizer.fingerprint
    np.testing.assert_array_equal(loaded.encode(sample_images(7)), codes)


def test_weights_and_sizes_that_disagree_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"missing codebook; .*codebok"):
        ImageTokenizer(CONFIG, {**{k: v for k, v in PARAMS.items() if k != "codebook"}, "codebok": PARAMS["codebook"]})
    directory = model_dir.save(tmp_path / "model", "seed_tokenizer", {"dims": {}}, PARAMS)
    with pytest.raises(UserError, match=r"config\.json"):
        ImageTokenizer.load(directory)
    with pytest.raises(UserError, match="is 0, expected at least 1"):
        ImageTokenizer(CONFIG, PARAMS, batch_size=0)
    with pytest.raises(UserError, match="'lanczos'"):
        ImageTokenizer(CONFIG, PARAMS, preprocessing=Preprocessing("lanczos"))


@pytest.mark.parametrize(("count", "size"), [(16, 4), (6, 3), (7, 1), (3, 3), (4, 4)])
def test_every_row_is_computed_in_groups_that_divide_the_batch(count, size):
    seen = []

    def function(params, batch):
        seen.append(batch.shape)
        return params * batch.sum(-1)

    batch = jnp.arange(count * 10.0).reshape(count, 2, 5)
    np.testing.assert_allclose(map_in_groups(function)(2.0, batch), 2 * batch.sum(-1))
    assert set(seen) == {(size, 2, 5)}
