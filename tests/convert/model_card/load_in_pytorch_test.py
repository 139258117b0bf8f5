"""The script of exported folders does in PyTorch what we do: the same codes, token ids, answer and pixels."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from PIL import Image

from seed_jax.checkpoint import model_dir
from seed_jax.convert.diffusion.diffusers_export import export_unclip
from seed_jax.convert.llama.hf_export import export_llama
from seed_jax.convert.tokenizer.official_export import export_tokenizer
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.doctor import cases
from seed_jax.inference.drawing.drawer import Drawer
from seed_jax.inference.drawing.request import DrawOptions
from seed_jax.inference.seed_llama import SeedLlama
from tests.models.diffusion.cases import FOLDER
from tests.support import golden

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
MESSAGE = "Please draw the red car again."
SCRIPT = "load_in_pytorch.py"


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> Path:
    """The three parts, as model directories and exported."""
    root = tmp_path_factory.mktemp("exports")
    sizes = {"sizes": cases.TOKENIZER.to_dict()}
    model_dir.save(root / "tokenizer", "seed_tokenizer", sizes, cases.tokenizer_params())
    files = {path.name: path for path in cases.VOCABULARY.iterdir()}
    config = {"sizes": cases.LLAMA.to_dict(), "image_tokenizer": "../tokenizer", "prompt_style": "vicuna"}
    model_dir.save(root / "llama", "llama", config, cases.llama_params(), files=files)
    export_tokenizer(root / "tokenizer", root / "tokenizer_pt", formats=["safetensors"])
    export_llama(root / "llama", root / "llama_pt", dtype="float32")
    vocabulary = ClipVocabulary.load(golden.path(f"{FOLDER}/tokenizer"))
    sizes = {"sizes": cases.DECODER.to_dict()}
    files = {path.name: path for path in vocabulary.save(tmp_path_factory.mktemp("vocabulary"))}
    model_dir.save(root / "unclip", "unclip", sizes, cases.decoder_params(), files=files)
    export_unclip(root / "unclip", root / "unclip_pt", image_side=golden.path(FOLDER))
    image = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    Image.fromarray(image).save(root / "image.png")
    return root


def load(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_codes_ids_answer_and_pixels_are_ours(exports):
    import transformers
    from diffusers import StableUnCLIPImg2ImgPipeline

    script = load(exports / "llama_pt" / SCRIPT)
    theirs = load(exports / "tokenizer_pt/seed_tokenizer_pytorch.py").Tokenizer(exports / "tokenizer_pt")
    model = SeedLlama.load(exports / "llama", dtype="float32")
    with Image.open(exports / "image.png") as image:
        codes = theirs.encode(image)
    (ours,) = model.encode([exports / "image.png"])
    assert codes.tolist() == list(ours)

    text = transformers.AutoTokenizer.from_pretrained(exports / "llama_pt")
    prompt = script.prompt_ids(text, codes, MESSAGE)
    assert prompt == model.prompt(MESSAGE, [exports / "image.png"])

    llama = transformers.AutoModelForCausalLM.from_pretrained(exports / "llama_pt").eval()
    drawn = script.generate_image(llama, text, prompt, cases.TOKENIZER.num_codes)
    answer = model.ask(MESSAGE, [exports / "image.png"], mode="image", max_new_tokens=40)
    assert drawn[0].tolist() == list(answer.segments[0].codes)

    embedding = theirs.embed(drawn)
    embeddings = model.image_tokenizer().embed_codes(drawn.numpy().astype(np.int32))
    # Float32 sums in another order.
    np.testing.assert_allclose(embedding.numpy(), embeddings, atol=1e-5 * np.abs(embeddings).max())
    pipeline = StableUnCLIPImg2ImgPipeline.from_pretrained(exports / "unclip_pt")
    pipeline.set_progress_bar_config(disable=True)
    rng = np.random.default_rng(1)
    latents, noise = (rng.standard_normal(shape, np.float32) for shape in ((1, 4, 8, 8), embeddings.shape))
    random_noise = "diffusers.pipelines.stable_diffusion.pipeline_stable_unclip_img2img.randn_tensor"
    with mock.patch(random_noise, return_value=torch.from_numpy(noise)):
        expected = pipeline(
            image_embeds=embedding, latents=torch.from_numpy(latents), num_inference_steps=3, output_type="np"
        ).images
    drawer = Drawer(cases.DECODER, cases.decoder_params())
    pixels = drawer.draw(embeddings, [0], DrawOptions("pndm", 3), latents=latents.transpose(0, 2, 3, 1), noise=noise)
    assert np.abs(pixels.astype(float) - 255 * expected).max() < 1  # rounded to 8 bits


@pytest.mark.slow
def test_the_command_draws_an_image(exports, tmp_path):
    folders = [exports / name for name in ("llama_pt", "tokenizer_pt", "unclip_pt")]
    command = [sys.executable, folders[2] / SCRIPT, *folders, exports / "image.png", MESSAGE]
    subprocess.run([str(word) for word in command], cwd=tmp_path, check=True, capture_output=True, timeout=300)
    with Image.open(tmp_path / "answer.png") as image:
        assert image.size == (cases.DECODER.image_size,) * 2


@pytest.mark.slow
def test_the_script_is_short_and_needs_no_jax(exports):
    lines = (exports / "tokenizer_pt" / SCRIPT).read_text().splitlines()
    code = [line for line in lines if line.strip()]
    assert len(code) <= 40
    assert not any("jax" in line for line in lines if line.startswith(("import", "from")))
