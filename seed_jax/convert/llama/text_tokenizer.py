"""The text tokenizer of an exported language model: files with which transformers produces the same ids as we do.

Training used the slow tokenizer of transformers 4.30, which removes white space beside image tokens. Newer releases,
slow and fast, do so only if `tokenizer_config.json` declares it for each token in `added_tokens_decoder`.
"""

from pathlib import Path
from typing import Any

from seed_jax.convert.parity import Check
from seed_jax.data.templates.dialogue import Markers
from seed_jax.data.text.vocabulary import CODES_PER_IMAGE, Vocabulary
from seed_jax.data.text.vocabulary_files import ADDED_TOKENS
from seed_jax.files import read_json, write_json

CONFIG = "tokenizer_config.json"
_CONTROL_TOKENS = ("<unk>", "<s>", "</s>")  # in the order of their ids
_DELIMITERS = ("<img>", "</img>")


def write_text_tokenizer(directory: Path, source_files: dict[str, Path]) -> None:
    """Write the four tokenizer files.

    Keys of the source's `tokenizer_config.json` that do not concern the ids, such as a chat template, are kept.

    Args:
        directory: an existing folder.
        source_files: name -> path of the tokenizer files in the model directory.
    """
    Vocabulary.load(source_files[ADDED_TOKENS].parent).save(directory)
    config = read_json(directory / CONFIG)
    if CONFIG in source_files:
        kept = read_json(source_files[CONFIG])
        # Left by other tokenizer classes: the ids come from tokenizer.model and the tokens declared below.
        for key in ("auto_map", "tokenizer_file", "use_fast", "from_slow", "add_prefix_space", "backend"):
            kept.pop(key, None)
        config = {**kept, **config, "model_max_length": kept.get("model_max_length", config["model_max_length"])}
    config["added_tokens_decoder"] = _added_tokens_decoder(read_json(directory / ADDED_TOKENS))
    write_json(directory / CONFIG, config)


def _added_tokens_decoder(added: dict[str, int]) -> dict[str, Any]:
    decoder = {str(index): _token(name, special=True) for index, name in enumerate(_CONTROL_TOKENS)}
    for name, index in sorted(added.items(), key=lambda item: item[1]):
        decoder[str(index)] = _token(name, special=name in _DELIMITERS, strip=True)
    return decoder


def _token(content: str, *, special: bool, strip: bool = False) -> dict[str, Any]:
    return {
        "content": content,
        "lstrip": strip,
        "rstrip": strip,
        "normalized": False,
        "single_word": False,
        "special": special,
    }


def token_id_check(directory: Path) -> Check:
    """Compare the ids of prompts in the official styles under transformers, slow and fast, with ours.

    Args:
        directory: with the tokenizer's files and the model's `config.json`.
    """
    from transformers import AutoTokenizer

    vocabulary = Vocabulary.load(directory)
    prompts = sample_prompts(vocabulary)
    different = 0
    for fast in (False, True):
        tokenizer = AutoTokenizer.from_pretrained(directory, use_fast=fast)
        different += sum(tokenizer(text)["input_ids"] != vocabulary.encode(text, bos=True) for text in prompts)
    meaning = f"prompts whose ids differ from transformers', of {2 * len(prompts)}"
    return Check("token ids", float(different), 0.0, meaning)


def sample_prompts(vocabulary: Vocabulary) -> list[str]:
    """Return prompts in the official styles, with and without images and white space beside them."""
    codes = (code * 7 % vocabulary.num_codes for code in range(CODES_PER_IMAGE))
    image = f"<img>{''.join(f'<img_{code:05d}>' for code in codes)}</img>"
    prompts = [
        image,
        f"{image}a dog",
        f"{image} a dog",
        f"a dog {image}",
        f"a dog\n{image}\n",
        f"a {image} b {image} c",
    ]
    for style in ("vicuna", "llama2"):
        markers = Markers.of_style(style)
        for message in ("What is this?", f"{image}What is this?", f"{image} {image}\nCompare them.", f"Edit {image}."):
            turn = f"{markers.before}{message}{markers.after}"
            prompts += [turn, f"{turn} A dog.{markers.between}{turn}", f"{turn}A dog.</s>{turn}", f"{turn} {image}"]
    return prompts
