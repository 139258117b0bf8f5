"""The image tokenizer's encoder (EVA ViT-g, Q-Former, codebook): images per second, beside PyTorch.

Random weights. PyTorch is timed in eager mode and, on a GPU, compiled; both with fused attention.
"""

from benchmarks.items import common

BATCHES = {"tiny": (2,), "cpu": (8,), "gpu": (32, 128)}
DTYPES = {"tiny": ("float32", "bfloat16"), "cpu": ("float32",), "gpu": ("bfloat16", "float32")}


def main() -> None:
    args = common.parse_args(__doc__)
    encoder = (make_jax if args.side == "seed_jax" else make_torch)(args)
    pairs = [(dtype, batch) for dtype in DTYPES[args.scale] for batch in BATCHES[args.scale]]
    cases = {f"{dtype}, batch {batch}": (dtype, batch) for dtype, batch in pairs}
    for case, (dtype, batch) in common.before(args.deadline, cases, "images/s"):
        times = common.measure(encoder(dtype, batch), 3)
        common.report(
            case, batch / times["median"], "images/s", min=batch / times["max"], max=batch / times["min"],
            first_s=round(times["first"], 1),
        )  # fmt: skip


def _config(scale: str):
    from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizerConfig

    return SeedTokenizerConfig.tiny() if scale == "tiny" else SeedTokenizerConfig.full()


def make_jax(args):
    import numpy as np

    from seed_jax.inference.image_tokenizer import ImageTokenizer
    from seed_jax.models.tokenizer.seed_tokenizer import abstract_params
    from seed_jax.precision import Precision

    config = _config(args.scale)
    params = common.random_tree(abstract_params(config))

    def encoder(dtype: str, batch: int):
        tokenizer = ImageTokenizer(config, params, precision=Precision(dtype, dtype), batch_size=batch)
        shape = (batch, config.image_size, config.image_size, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        return lambda: tokenizer.encode_pixels(pixels)

    return encoder


def make_torch(args):
    """Build the same network of PyTorch's own modules: only its speed is compared."""
    import torch
    from torch import nn
    from torch.nn.functional import scaled_dot_product_attention

    device, config = common.torch_device(args.threads), _config(args.scale)

    class Attention(nn.Module):
        def __init__(self, width: int, heads: int, source: int | None = None):
            super().__init__()
            self.heads, source = heads, source or width
            self.q, self.k, self.v = nn.Linear(width, width), nn.Linear(source, width), nn.Linear(source, width)
            self.out = nn.Linear(width, width)

        def forward(self, x, source=None, causal=False):
            source = x if source is None else source
            q, k, v = (
                projection(y).unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for projection, y in ((self.q, x), (self.k, source), (self.v, source))
            )
            return self.out(scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2))

    class Block(nn.Module):
        def __init__(self, width: int, heads: int, hidden: int, source: int | None = None):
            super().__init__()
            self.attention, self.norm1, self.norm2 = Attention(width, heads), nn.LayerNorm(width), nn.LayerNorm(width)
            self.cross = Attention(width, heads, source) if source else None
            self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

        def forward(self, x, source=None, causal=False):
            x = x + self.attention(self.norm1(x), causal=causal)
            if self.cross is not None:
                x = x + self.cross(x, source)
            return x + self.mlp(self.norm2(x))

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            vit, former = config.vit, config.qformer
            width, blocks = vit.blocks.width, vit.blocks
            self.patches = nn.Conv2d(3, width, vit.patch_size, vit.patch_size)
            self.first = nn.Parameter(torch.randn(1, 1, width))
            count = (config.image_size // vit.patch_size) ** 2 + 1
            self.positions = nn.Parameter(torch.randn(1, count, width))
            self.vit = nn.ModuleList(Block(width, blocks.heads, blocks.mlp_width) for _ in range(blocks.depth))
            self.norm = nn.LayerNorm(width)
            self.queries = nn.Parameter(torch.randn(1, config.codes_per_image, former.width))
            self.former = nn.ModuleList(
                Block(former.width, former.heads, former.mlp_width, width if layer % 2 == 0 else None)
                for layer in range(former.depth)
            )
            self.project = nn.Sequential(
                nn.Linear(former.width, former.width), nn.Tanh(), nn.Linear(former.width, config.code_width)
            )
            self.codebook = nn.Parameter(torch.randn(config.num_codes, config.code_width))

        def forward(self, pixels):
            x = self.patches(pixels).flatten(2).transpose(1, 2)
            x = torch.cat([self.first.expand(len(x), -1, -1), x], 1) + self.positions
            for block in self.vit:
                x = block(x)
            x, queries = self.norm(x), self.queries.expand(len(x), -1, -1)
            for block in self.former:
                queries = block(queries, x, causal=True)
            return torch.cdist(self.project(queries).float(), self.codebook.float()).argmin(-1)

    with torch.device(device):
        model = Encoder().eval().requires_grad_(False)
    run = torch.compile(model) if device.type == "cuda" else model

    def encoder(dtype: str, batch: int):
        model.to(getattr(torch, dtype))
        size = config.image_size
        pixels = torch.randn(batch, 3, size, size, device=device, dtype=getattr(torch, dtype))

        def call():
            with torch.inference_mode():
                run(pixels)

        return common.torch_timed(call)

    return encoder


if __name__ == "__main__":
    main()
