"""The unCLIP decoder: seconds per image of 768 x 768 pixels with guidance, beside diffusers' PyTorch pipeline.

Random weights; 20 steps on a GPU, one on a CPU. PyTorch runs the UNet with the sampler's scheduler and the autoencoder,
as its pipeline does.
"""

from benchmarks.items import common

STEPS = {"tiny": 2, "cpu": 1, "gpu": 20}
BATCHES = {"tiny": (1,), "cpu": (1,), "gpu": (1, 4)}


def main() -> None:
    args = common.parse_args(__doc__)
    draw = (make_jax if args.side == "seed_jax" else make_torch)(args)
    cases = {f"steps {STEPS[args.scale]}, batch {batch}": batch for batch in BATCHES[args.scale]}
    for case, batch in common.before(args.deadline, cases, "s/image"):
        times = common.measure(draw(batch), 3)
        common.report(case, times["median"] / batch, "s/image", **common.spread(times, 1 / batch))


def _config(scale: str):
    from seed_jax.models.diffusion import UnclipConfig

    return UnclipConfig.tiny() if scale == "tiny" else UnclipConfig.full()


def _dtype(scale: str) -> str:
    return "bfloat16" if scale == "gpu" else "float32"


def make_jax(args):
    import numpy as np

    from seed_jax.convert.diffusion.diffusers_import import abstract_params
    from seed_jax.inference.drawing.drawer import Drawer
    from seed_jax.inference.drawing.request import DrawOptions

    config, dtype = _config(args.scale), _dtype(args.scale)
    drawer = Drawer(config, common.random_tree(abstract_params(config)), dtype=dtype)
    options = DrawOptions("ddim", STEPS[args.scale])

    def draw(batch: int):
        embeddings = np.random.default_rng(0).standard_normal((batch, config.embedding_width), np.float32)
        return lambda: drawer.draw(embeddings, list(range(batch)), options)

    return draw


def make_torch(args):
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel

    from seed_jax.convert.diffusion.diffusers_export import folder_files

    device, config = common.torch_device(args.threads), _config(args.scale)
    dtype = getattr(torch, _dtype(args.scale))
    files = folder_files(config)
    with torch.device(device):
        network = UNet2DConditionModel.from_config(files["unet/config.json"]).eval().to(dtype)
        decoder = AutoencoderKL.from_config(files["vae/config.json"]).eval()
    size = config.unet.sample_size
    run = torch.compile(network) if device.type == "cuda" else network

    def draw(batch: int):
        options = {"device": device, "dtype": dtype}
        text = torch.randn(2 * batch, 77, config.unet.text_width, **options)
        labels = torch.randn(2 * batch, config.unet.class_width, **options)

        def call():
            scheduler = DDIMScheduler(prediction_type="v_prediction")
            scheduler.set_timesteps(STEPS[args.scale])
            latents = torch.randn(batch, 4, size, size, **options)
            with torch.inference_mode():
                for step in scheduler.timesteps:
                    pair = torch.cat([latents, latents])
                    predicted = run(pair, step.to(device), text, class_labels=labels).sample
                    unconditional, conditional = predicted.chunk(2)
                    guided = unconditional + 10.0 * (conditional - unconditional)
                    latents = scheduler.step(guided, step, latents).prev_sample
                return decoder.decode(latents.float() / decoder.config.scaling_factor).sample

        return common.torch_timed(call)

    return draw


if __name__ == "__main__":
    main()
