"""What PyTorch computes from the models of the self-test: `python -m tests.doctor.record` writes the goldens."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file

from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.convert.diffusion.diffusers_export import write_unclip
from seed_jax.convert.key_table import to_torch_tensors
from seed_jax.convert.llama.hf_export import export_llama
from seed_jax.convert.tokenizer.key_table import key_table
from seed_jax.convert.tokenizer.torch_reference import TorchTokenizer
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.doctor import cases
from tests.models.diffusion.cases import FOLDER
from tests.support import golden


def outputs() -> dict[str, np.ndarray]:
    """Return name -> output, as `goldens.safetensors` stores them."""
    with tempfile.TemporaryDirectory() as temporary, torch.no_grad():
        return {**_tokenizer(), **_llama(Path(temporary)), **_decoder(Path(temporary))}


def _tokenizer() -> dict[str, np.ndarray]:
    x = cases.inputs()
    tensors = to_torch_tensors(key_table(cases.TOKENIZER), cases.tokenizer_params(), "the self-test")
    reference = TorchTokenizer(cases.TOKENIZER, tensors)
    encoded = reference.encode(x["images"])
    return {
        "embeddings": encoded.embeddings,
        "codes": encoded.codes.astype(np.int32),
        "margin": encoded.margin / encoded.distance,
        "generation_embedding": reference.embed_codes(x["codes"]),
    }


def _llama(directory: Path) -> dict[str, np.ndarray]:
    import transformers

    config = {"sizes": cases.LLAMA.to_dict(), "image_tokenizer": None}
    files = {path.name: path for path in cases.VOCABULARY.iterdir()}
    model_dir.save(directory / "llama", ModelKind.LLAMA, config, cases.llama_params(), files=files)
    export_llama(directory / "llama", directory / "hf", dtype="float32")
    model = transformers.LlamaForCausalLM.from_pretrained(directory / "hf").float().eval()
    tokens = torch.from_numpy(cases.inputs()["tokens"]).long()
    generated = model.generate(
        tokens, max_new_tokens=cases.NUM_GENERATED, min_new_tokens=cases.NUM_GENERATED, do_sample=False,
        attention_mask=torch.ones_like(tokens),
    )  # fmt: skip
    return {
        "logits": model(tokens).logits.numpy(),
        "generated": generated[:, tokens.shape[1] :].numpy().astype(np.int32),
    }


def _decoder(directory: Path) -> dict[str, np.ndarray]:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    vocabulary = ClipVocabulary.load(golden.path(f"{FOLDER}/tokenizer"))
    folder, x = directory / "unclip", {name: torch.from_numpy(value) for name, value in cases.inputs().items()}
    write_unclip(cases.DECODER, cases.decoder_params(), vocabulary, folder, image_side=golden.path(FOLDER))
    latents = x["latents"].permute(0, 3, 1, 2)
    unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    noise = unet(latents, cases.TIMESTEP, x["text_states"], class_labels=x["class_labels"]).sample
    vae = AutoencoderKL.from_pretrained(folder / "vae").eval()
    return {
        "unet": noise.permute(0, 2, 3, 1).numpy(),
        "vae": vae.decode(latents).sample.permute(0, 2, 3, 1).numpy(),
    }


if __name__ == "__main__":
    save_file({name: np.ascontiguousarray(value) for name, value in outputs().items()}, cases.GOLDENS)
