"""A PyTorch implementation of SEED's image tokenizers (spec A, G), the reference of parity reports.

Written for comparison, not for speed: plain operations in float32, weights read from their file when they are used.
"""

import dataclasses
from typing import Any

import numpy as np

from seed_jax.convert.tensors import TensorDict
from seed_jax.convert.tokenizer.key_table import QFORMER, REVERSE, VIT
from seed_jax.errors import UserError
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig

_MASKED = -10000.0  # the original adds this to the attention scores of masked keys


@dataclasses.dataclass(frozen=True)
class TorchCodes:
    """Codes of images and the values they follow from.

    Args:
        features: [B, N, V], what the Q-Former cross-attends to.
        embeddings: [B, Q, D], causal embeddings.
        codes: [B, Q].
        distance: [B, Q], squared distance to the nearest code.
        margin: [B, Q], squared distance to the second-nearest code minus `distance`.
    """

    features: np.ndarray
    embeddings: np.ndarray
    codes: np.ndarray
    distance: np.ndarray
    margin: np.ndarray


class TorchTokenizer:
    """The tokenizer of `seed_quantizer.pt` and `eva_vit_g.pth`, or SEED-1's.

    Args:
        config: numbers of heads and layers; all else follows from the tensors.
        tensors: by official names, the ViT's with their prefix.

    Raises:
        UserError: PyTorch is not installed.
    """

    def __init__(self, config: SeedTokenizerConfig, tensors: TensorDict):
        try:
            import torch
        except ImportError:
            raise UserError("Comparing with PyTorch needs the extra `torch`: pip install 'seed-jax[torch]'.") from None
        self._torch, self._f = torch, torch.nn.functional
        self._config, self._tensors = config, tensors

    def encode(self, image: np.ndarray) -> TorchCodes:
        """Encode normalised images [B, H, W, 3]."""
        torch = self._torch
        with torch.no_grad():
            x = self._vit(torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2), np.float32)))
            features = self._norm(x, "ln_vision", self._config.ln_vision_epsilon)
            hidden = self._bert(QFORMER, self._config.qformer, self._weight("query_tokens"), features)
            z = self._linear(torch.tanh(self._linear(hidden, "encode_task_layer.0")), "encode_task_layer.2")
            codebook = self._weight("quantize.embedding.weight")
            distances = (z**2).sum(-1, keepdim=True) + (codebook**2).sum(-1) - 2 * z @ codebook.T
            nearest = distances.topk(2, dim=-1, largest=False).values
            codes = distances.argmin(-1)
        best, second = nearest[..., 0], nearest[..., 1]
        margin = second - best
        return TorchCodes(features.numpy(), hidden.numpy(), codes.numpy(), best.numpy(), margin.numpy())

    def embed_codes(self, codes: np.ndarray) -> np.ndarray:
        """Return the generation embeddings [B, E], SEED-1's [B, T, E], of codes [B, Q]."""
        torch, config = self._torch, self._config
        with torch.no_grad():
            x = self._weight("quantize.embedding.weight")[torch.from_numpy(codes).long()]
            x = self._linear(torch.tanh(self._linear(x, "decode_task_layer.0")), "decode_task_layer.2")
            target = "text" if config.predicts_text else "image"
            x = x + self._weight(f"pos_embed_{target}")
            for layer in range(config.decoder.depth):
                x = self._block(x, f"blocks_{target}.{layer}", config.decoder)
            if config.predicts_text:
                x = self._bert(REVERSE, config.reverse, self._weight("reverse_tokens"), x)
                return self._linear(x, "distill_text_proj").numpy()
            if config.head == "reverse_qformer":
                x = self._bert(REVERSE, config.reverse, self._weight("reverse_tokens"), x)[:, 0]
            else:
                for index in range(len(config.image_down)):
                    x = self._f.linear(torch.relu(x) if index else x, self._weight(f"image_down.{2 * index}.weight"))
                x = x.flatten(1)
            return self._linear(x, "distill_image_proj").numpy()

    def _vit(self, image: Any) -> Any:
        torch, config = self._torch, self._config.vit
        name = f"{VIT}patch_embed.proj"
        patches = self._f.conv2d(
            image, self._weight(f"{name}.weight"), self._weight(f"{name}.bias"), stride=config.patch_size
        )
        patches = patches.flatten(2).transpose(1, 2)
        first = self._weight(f"{VIT}cls_token").expand(len(image), -1, -1)
        x = torch.cat([first, patches], dim=1) + self._weight(f"{VIT}pos_embed")
        for layer in range(config.blocks.depth):
            x = self._block(x, f"{VIT}blocks.{layer}", config.blocks)
        return x

    def _block(self, x: Any, name: str, config: Any) -> Any:
        """Apply a pre-LN block; the ViT's has biases for queries and values only."""
        torch = self._torch
        if config.key_bias:
            bias = self._weight(f"{name}.attn.qkv.bias")
        else:
            query, value = (self._weight(f"{name}.attn.{part}_bias") for part in "qv")
            bias = torch.cat([query, torch.zeros_like(query), value])
        normed = self._norm(x, f"{name}.norm1", config.epsilon)
        qkv = self._f.linear(normed, self._weight(f"{name}.attn.qkv.weight"), bias)
        q, k, v = qkv.chunk(3, dim=-1)
        x = x + self._linear(self._attend(q, k, v, config.heads), f"{name}.attn.proj")
        normed = self._norm(x, f"{name}.norm2", config.epsilon)
        return x + self._linear(self._f.gelu(self._linear(normed, f"{name}.mlp.fc1")), f"{name}.mlp.fc2")

    def _bert(self, name: str, config: Any, queries: Any, memory: Any) -> Any:
        """Apply the query side of a Q-Former: post-LN layers, every second one with cross-attention to `memory`."""
        torch = self._torch
        x = self._norm(queries.expand(len(memory), -1, -1), f"{name}embeddings.LayerNorm", config.epsilon)
        length = x.shape[1]
        masked = torch.triu(torch.ones(length, length), diagonal=1) if config.causal else torch.zeros(length, length)
        for layer in range(config.depth):
            prefix = f"{name}encoder.layer.{layer}"
            x = self._bert_attention(x, x, f"{prefix}.attention", config, masked * _MASKED)
            if layer % config.cross_attention_every == 0:
                x = self._bert_attention(x, memory, f"{prefix}.crossattention", config, 0.0)
            y = self._f.gelu(self._linear(x, f"{prefix}.intermediate_query.dense"))
            y = self._linear(y, f"{prefix}.output_query.dense")
            x = self._norm(y + x, f"{prefix}.output_query.LayerNorm", config.epsilon)
        return x

    def _bert_attention(self, x: Any, memory: Any, name: str, config: Any, mask: Any) -> Any:
        q = self._linear(x, f"{name}.self.query")
        k, v = (self._linear(memory, f"{name}.self.{part}") for part in ("key", "value"))
        y = self._linear(self._attend(q, k, v, config.heads, mask), f"{name}.output.dense")
        return self._norm(y + x, f"{name}.output.LayerNorm", config.epsilon)

    def _attend(self, q: Any, k: Any, v: Any, heads: int, mask: Any = 0.0) -> Any:
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
        weights = ((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2) + mask).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    def _linear(self, x: Any, name: str) -> Any:
        return self._f.linear(x, self._weight(f"{name}.weight"), self._weight(f"{name}.bias"))

    def _norm(self, x: Any, name: str, epsilon: float) -> Any:
        weight, bias = self._weight(f"{name}.weight"), self._weight(f"{name}.bias")
        return self._f.layer_norm(x, x.shape[-1:], weight, bias, epsilon)

    def _weight(self, name: str) -> Any:
        return self._torch.from_numpy(np.array(self._tensors[name].read(), np.float32))
