import jax
import numpy as np
import pytest

from seed_jax import sharding
from seed_jax.checkpoint import model_dir
from seed_jax.errors import UserError
from seed_jax.inference.drawing.batch import seeded_noise
from seed_jax.inference.drawing.drawer import Drawer
from seed_jax.inference.drawing.request import DrawOptions
from seed_jax.models.diffusion import UnclipConfig
from tests.models.diffusion.cases import imported, random_decoder, tensors

CONFIG = UnclipConfig.tiny()
FAST = DrawOptions(sampler="dpmpp", steps=2)
EMBEDDINGS = np.random.default_rng(0).standard_normal((5, CONFIG.embedding_width)).astype(np.float32)
# The last digit of a pixel may go the other way where float32 rounds differently.
LEVEL = 1


def mesh(**shape):
    return sharding.make_mesh(shape, jax.devices()[: int(np.prod(list(shape.values())))])


@pytest.fixture(scope="module")
def params():
    return random_decoder(CONFIG)[1]


@pytest.fixture(scope="module")
def drawer(params):
    return Drawer(CONFIG, params, mesh=mesh(replica=1))


@pytest.fixture(scope="module")
def images(drawer):
    drawn = drawer.draw(EMBEDDINGS, range(5), FAST, batch_size=2)
    assert drawn.shape == (5, 64, 64, 3)
    assert drawn.dtype == np.uint8
    assert min(difference(a, b) for i, a in enumerate(drawn) for b in drawn[:i]) > 50  # all different
    return drawn


def difference(a, b) -> int:
    return int(np.abs(a.astype(int) - b).max())


@pytest.mark.slow
@pytest.mark.parametrize("case", ["negative", "prompt"])
def test_images_equal_the_originals(case):
    inputs = tensors("inputs")
    drawer = Drawer(imported().config, imported().params, vocabulary=imported().vocabulary, mesh=mesh(replica=1))
    more = {"prompts": "the cat of dog photo"}
    if case == "negative":
        more = {"negative_embeddings": inputs["negative_image_embeds"], "negative_noise": inputs["noise_negative"]}
    drawn = drawer.draw(
        inputs["image_embeds"], [0], DrawOptions(steps=5), latents=inputs["latents"], noise=inputs["noise"], **more
    )
    recorded = np.asarray(tensors(f"pndm_5_{case}")["image"])
    assert np.abs(drawn / 255 - recorded).max() <= 1 / 255


def test_a_image_does_not_depend_on_its_batch(drawer, images):
    for i in (0, 3):
        assert difference(drawer.draw(EMBEDDINGS[i : i + 1], [i], FAST)[0], images[i]) <= LEVEL
    order = [4, 2, 2, 0]
    assert difference(drawer.draw(EMBEDDINGS[order], order, FAST, batch_size=2), images[order]) <= LEVEL


@pytest.mark.slow
def test_images_do_not_depend_on_the_number_of_devices(params, images):
    spread = Drawer(CONFIG, params, mesh=mesh(replica=4, fsdp=2))
    assert difference(spread.draw(EMBEDDINGS, range(5), FAST), images) <= LEVEL


def test_seeds_and_purposes_give_different_noise():
    seeds = np.array([7, 8, 7], np.uint32)
    noise = np.asarray(seeded_noise(jax.numpy.asarray(seeds), 0, (4, 1000)))
    np.testing.assert_array_equal(noise[0], noise[2])
    other = np.asarray(seeded_noise(jax.numpy.asarray(seeds), 1, (4, 1000)))
    for a, b in ((noise[0], noise[1]), (noise[0], other[0])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 0.06  # 4 standard deviations
    assert noise.std() == pytest.approx(1, abs=0.04)


def test_another_seed_or_noise_level_draws_another_image(drawer, images):
    assert difference(drawer.draw(EMBEDDINGS[:1], [99], FAST)[0], images[0]) > 50
    noised = DrawOptions(sampler="dpmpp", steps=2, noise_level=900)
    assert difference(drawer.draw(EMBEDDINGS[:1], [0], noised)[0], images[0]) > 5


def test_weak_guidance_skips_the_unconditional_half(drawer):
    """At scale 1 the unconditional half cancels: the short way is the limit of the long one."""
    short, long = (
        drawer.draw(EMBEDDINGS[:1], [0], DrawOptions(sampler="dpmpp", steps=2, guidance_scale=scale))
        for scale in (1.0, 1.000001)
    )
    assert difference(short, long) <= LEVEL


def test_negatives_pull_away(drawer, images):
    away = drawer.draw(EMBEDDINGS[:1], [0], FAST, negative_embeddings=EMBEDDINGS[4:])
    assert difference(away, images[:1]) > 50


def test_loads_from_a_directory(tmp_path, params):
    model_dir.save(tmp_path / "decoder", "unclip", {"sizes": CONFIG.to_dict()}, params)
    loaded = Drawer.load(tmp_path / "decoder", mesh=mesh(replica=1))
    assert loaded.config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, loaded.params, params)
    with pytest.raises(UserError, match="only the empty prompt"):
        loaded.draw(EMBEDDINGS[:1], [0], FAST, prompts="a dog")


@pytest.mark.slow
def test_bfloat16_draws_nearly_the_same(params, images):
    rounded = Drawer(CONFIG, params, mesh=mesh(replica=1), dtype="bfloat16", vae_dtype="bfloat16")
    off = np.abs(rounded.draw(EMBEDDINGS[:1], [0], FAST).astype(int) - images[:1])
    assert 0 < off.mean() < 12  # guidance multiplies the rounding by ten


@pytest.mark.parametrize(("change", "message"), [
    ({"embeddings": EMBEDDINGS[:, :20]}, "width 20, but this decoder expects width 24"),
    ({"embeddings": EMBEDDINGS[:0]}, r"\(0, 24\)"),
    ({"embeddings": np.where(np.arange(24) == 3, np.nan, EMBEDDINGS)}, "Entry 0 of the generation embeddings"),
    ({"seeds": [1, 2]}, "expected 5 integers"),
    ({"seeds": [0, 1, 2, 3, -4]}, "expected 0 to 4294967295"),
    ({"negative_embeddings": EMBEDDINGS[:2]}, "negative embeddings have the shape"),
    ({"latents": np.zeros((5, 4, 8, 8))}, r"expected \(5, 8, 8, 4\)"),
    ({"prompts": ["a", "b"]}, "2 prompts for 5 images"),
    ({"options": DrawOptions(sampler="euler")}, "'euler'"),
    ({"options": DrawOptions(steps=0)}, "0 sampling steps"),
    ({"options": DrawOptions(noise_level=1000)}, "noise level is 1000"),
    ({"options": DrawOptions(guidance_scale=float("nan"))}, "guidance scale is nan"),
    ({"batch_size": 0}, "batch size is 0"),
])  # fmt: skip
def test_bad_requests_are_refused(drawer, change, message):
    with pytest.raises(UserError, match=message):
        drawer.draw(**{"embeddings": EMBEDDINGS, "seeds": range(5), **change})
