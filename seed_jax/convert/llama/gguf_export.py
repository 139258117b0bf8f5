"""Export a language model as one GGUF file, which llama.cpp and the programs built on it run."""

import contextlib
import math
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from seed_jax.convert.hugging_face.source import LanguageModelSource
from seed_jax.convert.key_table import to_torch_tensors
from seed_jax.convert.llama.gbnf import image_grammar
from seed_jax.convert.llama.hf_export import LLAMA
from seed_jax.convert.llama.key_table import key_table
from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.data.text.vocabulary_files import ADDED_TOKENS, TOKENIZER_MODEL, read_files
from seed_jax.errors import UserError
from seed_jax.files import atomic_path, write_text
from seed_jax.models.llama.model import LlamaConfig

# Name -> gguf's quantization type of matrices and its file type; vectors stay float32.
DTYPES = {
    "float32": ("F32", "ALL_F32"),
    "float16": ("F16", "MOSTLY_F16"),
    "bfloat16": ("BF16", "MOSTLY_BF16"),
    "q8_0": ("Q8_0", "MOSTLY_Q8_0"),
}
_TOP = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_ADDED_TOKEN_SCORE = -1000.0  # as llama.cpp's own converter


def export_gguf(model: str | Path, out: str | Path, *, dtype: str = "float16") -> None:
    """Export a language model for llama.cpp, with its adapters merged in, one tensor at a time.

        export_gguf("models/seed_llama_8b", "seed_llama_8b.gguf", dtype="q8_0")

    Image tokens are ordinary tokens of the file's vocabulary: llama.cpp prints `<img><img_00042>...</img>`, which
    `seed-jax detokenize` draws. The image grammar is written beside it as .gbnf (`seed_jax.convert.llama.gbnf`).

    Args:
        model: model directory or training workdir.
        out: .gguf file to write, atomically; must not exist.
        dtype: of matrices: float32, float16, bfloat16 or q8_0 (8 bits in blocks of 32).

    Raises:
        UserError: the gguf package is missing, the model has no SentencePiece tokenizer, a width does not fit blocks.
    """
    try:
        import gguf
    except ImportError:
        raise UserError("Writing GGUF needs the extra `gguf`: pip install 'seed-jax[gguf]'.") from None
    out = Path(out)
    grammar = out.with_suffix(".gbnf")
    for path in (out, grammar):
        if path.exists():
            raise UserError(f"{path} exists: choose another --out or delete it.")
    if dtype not in DTYPES:
        raise UserError(f"GGUF has no dtype {dtype!r}: expected one of {', '.join(DTYPES)}.")
    source = LanguageModelSource.open(LLAMA, model)
    if TOKENIZER_MODEL not in source.files or ADDED_TOKENS not in source.files:
        raise UserError(f"{model} has no text tokenizer ({TOKENIZER_MODEL}, {ADDED_TOKENS}): copy its files into it.")
    config = source.config
    assert isinstance(config, LlamaConfig)
    matrix_type, file_type = (
        getattr(enum, name)
        for enum, name in zip((gguf.GGMLQuantizationType, gguf.LlamaFileType), DTYPES[dtype], strict=True)
    )
    if dtype == "q8_0" and (config.hidden_size % 32 or config.intermediate_size % 32):
        raise UserError(
            f"q8_0 needs widths that are multiples of 32, but {model} has hidden_size {config.hidden_size} and "
            f"intermediate_size {config.intermediate_size}: choose another --dtype."
        )
    tensors = to_torch_tensors(key_table(config), source.merged_params(), str(model))
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        writer = gguf.GGUFWriter(temporary, "llama")
        with contextlib.closing(writer):
            _add_metadata(writer, config, source, file_type)
            names = {name: _gguf_name(name) for name in tensors}
            types = {
                name: matrix_type if len(tensors[name].shape) == 2 else gguf.GGMLQuantizationType.F32 for name in names
            }
            for name, target in names.items():
                shape = tensors[name].shape
                block, block_bytes = gguf.GGML_QUANT_SIZES[types[name]]
                size = math.prod(shape) // block * block_bytes
                writer.add_tensor_info(target, shape, np.dtype(np.float32), size, types[name])
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for name in names:
                values = np.asarray(tensors[name].read(), np.float32)
                if name.endswith(("q_proj.weight", "k_proj.weight")):
                    heads = config.num_heads if "q_proj" in name else config.num_kv_heads
                    values = interleave_rotary_halves(values, heads)
                writer.write_tensor_data(gguf.quants.quantize(values, types[name]))
    num_codes = Vocabulary.load(source.files[ADDED_TOKENS].parent).num_codes
    write_text(grammar, image_grammar(num_codes))


def interleave_rotary_halves(kernel: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the output rows of a query or key projection from Hugging Face's rotary layout to llama.cpp's.

    Hugging Face rotates row i of a head with row i + D/2, llama.cpp's LLaMA rotates neighbours.
    """
    halves = kernel.reshape(heads, 2, kernel.shape[0] // heads // 2, *kernel.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(kernel.shape)


def _gguf_name(name: str) -> str:
    if name in _TOP:
        return _TOP[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{_LAYER[rest.removesuffix('.weight')]}.weight"


def _add_metadata(writer: Any, config: LlamaConfig, source: LanguageModelSource, file_type: Any) -> None:
    import gguf

    writer.add_file_type(file_type)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_length)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_rope_dimension_count(config.head_size)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    model, added = read_files(source.files[TOKENIZER_MODEL].parent)
    assert isinstance(model, bytes)  # a LLaMA's
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    names, scores, types = [], [], []
    for index in range(pieces.vocab_size()):
        names.append(pieces.id_to_piece(index).encode())
        scores.append(pieces.get_score(index))
        kind = gguf.TokenType.NORMAL
        if pieces.is_unknown(index):
            kind = gguf.TokenType.UNKNOWN
        elif pieces.is_control(index):
            kind = gguf.TokenType.CONTROL
        elif pieces.is_byte(index):
            kind = gguf.TokenType.BYTE
        types.append(kind)
    for name, _ in sorted(added.items(), key=lambda item: item[1]):
        names.append(name.encode())
        scores.append(_ADDED_TOKEN_SCORE)
        types.append(gguf.TokenType.USER_DEFINED)  # control tokens would be neither read in prompts nor printed
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(names)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(True)
