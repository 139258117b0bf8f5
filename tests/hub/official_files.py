"""The parts of a SEED-LLaMA at tiny sizes, in the formats in which they are published, with a manifest of them."""

import dataclasses
import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from seed_jax.convert.diffusion.diffusers_export import write_unclip
from seed_jax.data.text.clip import ClipVocabulary
from seed_jax.data.text.vocabulary import train_small
from seed_jax.models.clip.text import PromptTokens
from tests.convert.llama.cases import TEXTS
from tests.models.diffusion.cases import FOLDER, SMALLEST, random_decoder
from tests.support import golden, philox

REPOSITORY = "official/seed"
PARTS = {"model": "llm", "tokenizer": "quantizer", "decoder": "unclip"}
_NUM_CODES, _NUM_TEXT, _EMBEDDING_WIDTH = 128, 300, 24  # as in tests/goldens/tokenizer_tiny
_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": _NUM_TEXT + _NUM_CODES + 2,
    "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": False,
    "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": -1,  # the wrong ids of the released 8B
}  # fmt: skip
_IMPORTS = {
    "llm": '["import", "llama", "--from", "{llm}", "--vocabulary", "{text}", "--dtype", "bfloat16", "--out", "{out}"]',
    "quantizer": '["import", "tokenizer", "--quantizer", "{quantizer}/seed_quantizer.pt", "--vit", '
    '"{vit}/eva_vit_g.pth", "--vit-heads", "4", "--qformer-heads", "4", "--decoder-heads", "4", "--out", "{out}"]',
    "unclip": '["import", "unclip", "--from", "{unclip}", "--variant", "fp16", "--out", "{out}"]',
}
_NEEDS = {"llm": ["text"], "quantizer": ["vit"]}


def write(directory: Path) -> dict[str, bytes]:
    """Write the files of every artefact to a folder of its name; return "owner/name/artefact/file" -> content."""
    _write_language_model(directory / "llm")
    train_small(TEXTS, directory / "text", vocab_size=_NUM_TEXT, num_codes=_NUM_CODES)
    _write_tokenizer(directory)
    _write_decoder(directory / "unclip")
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {f"{REPOSITORY}/{path.relative_to(directory)}": path.read_bytes() for path in files}


def manifest(files: dict[str, bytes]) -> str:
    """Return a manifest with the bundle "tiny" of these files, as TOML."""
    names = [key.removeprefix(f"{REPOSITORY}/") for key in files]
    entries = []
    for artefact in dict.fromkeys(name.split("/")[0] for name in names):
        use = f"import = {_IMPORTS[artefact]}" if artefact in _IMPORTS else 'used_by = "another"'
        entries.append(
            f'[[artefact]]\nname = "{artefact}"\ntitle = "tiny {artefact}"\npurpose = "tests"\nlicence = "llama2"\n'
            f'licence_confidence = "confirmed"\ngated = "no"\n{use}\nneeds = {json.dumps(_NEEDS.get(artefact, []))}\n'
            f'[[artefact.source]]\nhub = "{REPOSITORY}"\nrevision = "main"\nprefix = "{artefact}"\n'
            'confidence = "confirmed"\n'
        )
        entries += [
            f'[[artefact.file]]\npath = "{name.split("/", 1)[1]}"\nsize = {len(content)}\nsha256 = "unknown"\n'
            'confidence = "confirmed"\n'
            for name, content in zip(names, files.values(), strict=True)
            if name.startswith(f"{artefact}/")
        ]
    parts = ", ".join(f'{role} = "{artefact}"' for role, artefact in PARTS.items())
    bundle = f'[[bundle]]\nname = "tiny"\ntitle = "tiny SEED-LLaMA"\nprompt_style = "vicuna"\nparts = {{ {parts} }}\n'
    return "\n".join([*entries, bundle])


def _write_language_model(folder: Path) -> None:
    """Write float32 shards of PyTorch pickles, without a text tokenizer, as the 8B sft is released."""
    import torch

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(_CONFIG))
    width, hidden, vocabulary = (_CONFIG[key] for key in ("hidden_size", "intermediate_size", "vocab_size"))
    shapes = {"model.embed_tokens": (vocabulary, width), "lm_head": (vocabulary, width), "model.norm": (width,)}
    for layer in range(_CONFIG["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.self_attn.{name}_proj": (width, width) for name in "qkvo"}
        shapes |= {f"{prefix}.mlp.{name}_proj": (hidden, width) for name in ("gate", "up")}
        shapes[f"{prefix}.mlp.down_proj"] = (width, hidden)
        shapes |= {f"{prefix}.{name}": (width,) for name in ("input_layernorm", "post_attention_layernorm")}

    def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
        noise = philox.normal(5, name, shape)
        return 1 + 0.1 * noise if len(shape) == 1 else noise / shape[1] ** 0.5

    tensors = {f"{name}.weight": torch.from_numpy(weight(name, shape)) for name, shape in shapes.items()}
    files = [f"pytorch_model-0000{index}-of-00002.bin" for index in (1, 2)]
    weight_map = {name: files[index % 2] for index, name in enumerate(tensors)}
    for file in files:
        torch.save({name: tensor for name, tensor in tensors.items() if weight_map[name] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def _write_tokenizer(directory: Path) -> None:
    """Write the quantizer without the ViT, and the ViT in a file of its own."""
    import torch

    weights = load_file(golden.path("tokenizer_tiny/release.weights.safetensors"))
    prefix = "visual_encoder."
    parts = {
        "quantizer/seed_quantizer.pt": {n: t for n, t in weights.items() if not n.startswith(prefix)},
        "vit/eva_vit_g.pth": {n.removeprefix(prefix): t for n, t in weights.items() if n.startswith(prefix)},
    }
    for name, tensors in parts.items():
        (directory / name).parent.mkdir(parents=True)
        torch.save({key: torch.from_numpy(array) for key, array in tensors.items()}, directory / name)


def _write_decoder(folder: Path) -> None:
    """Write a diffusers folder whose weights are of the variant fp16."""
    config = dataclasses.replace(
        SMALLEST,
        unet=dataclasses.replace(SMALLEST.unet, class_width=2 * _EMBEDDING_WIDTH),
        text=dataclasses.replace(SMALLEST.text, vocab_size=523, max_length=77),
        prompt=PromptTokens(bos=521, eos=522),
    )
    _, params = random_decoder(config)
    vocabulary = ClipVocabulary.load(golden.path(f"{FOLDER}/tokenizer"))
    write_unclip(config, params, vocabulary, folder, image_side=golden.path(FOLDER), dtype="float16")
    for path in sorted(folder.rglob("*.safetensors")):
        if path.parent.name != "image_encoder":
            path.rename(path.with_name(path.name.replace(".safetensors", ".fp16.safetensors")))
