"""What bounds the quickstart's drawings: its image embedding and its autoencoder, by the number of objects.

    python benchmarks/drawing_limits.py [--teacher T/teacher]

The decoder sees nothing of an image but the embedding of the teacher's vision tower (by default the packaged one): a
linear probe and one with a hidden layer learn to read all attributes of a scene from it, from 10,000 images of which
4,000 show three objects. And it draws latents: images are encoded and decoded by the autoencoder alone. Prints, as
Markdown, how many scenes come through without any mistake. Two or three minutes on a core.
"""

import argparse
import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from seed_jax.checkpoint import model_dir
from seed_jax.data.world import Scene, render, sample_scene
from seed_jax.data.world.labels import ATTRIBUTES, MAX_OBJECTS, scene_labels
from seed_jax.models.diffusion import Unclip, UnclipConfig
from seed_jax.recipes.pipeline import Similarity
from seed_jax.recipes.quickstart import teacher_files
from seed_jax.recipes.quickstart.config import QuickstartConfig
from seed_jax.recipes.quickstart.read_captions import compare
from seed_jax.recipes.quickstart.read_pixels import read_image

BATCH_SIZE = 250  # of the networks; divides all numbers of images
STEPS, PROBE_BATCH_SIZE, PEAK_LR, HIDDEN = 3000, 256, 3e-3, 512
CUTS = np.cumsum([classes for _, classes in ATTRIBUTES])
Probe = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, help="directory of another teacher (variant teacher of the quickstart)")
    args = parser.parse_args()
    training = Images.sample(1, 6000) + Images.sample(2, 4000, num_objects=MAX_OBJECTS)
    held_out = Images.sample(3, 1000, held_out=True) + Images.sample(4, 500, held_out=True, num_objects=MAX_OBJECTS)
    known = Images.sample(5, 500, num_objects=MAX_OBJECTS)
    print("| | held-out combinations: one object | two | three | trained combinations: three |")
    print("|---|---:|---:|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        teacher = args.teacher or Path(folder)
        if args.teacher is None:
            teacher_files.unpack(teacher)
        embed = Similarity(teacher / "vision").unit_vectors
        vectors, held_out_vectors, known_vectors = (part.apply(embed) for part in (training, held_out, known))
        for name, hidden in (("embedding, linear probe", 0), (f"embedding, hidden layer of {HIDDEN}", HIDDEN)):
            read = train_probe(vectors, training.labels(), hidden)
            right = [
                (read(v) == part.labels()).all(-1) for v, part in ((held_out_vectors, held_out), (known_vectors, known))
            ]
            print_row(name, held_out, *right)
        reconstruct = autoencoder(teacher / "unclip")
        print_row("autoencoder", held_out, *(part.survivors(part.apply(reconstruct)) for part in (held_out, known)))


def print_row(name: str, held_out: "Images", right: np.ndarray, known_right: np.ndarray) -> None:
    """Print the share of scenes that are right, held-out ones by their number of objects."""
    counts = np.array([len(scene.objects) for scene in held_out.scenes])
    cells = [right[counts == count].mean() for count in range(1, MAX_OBJECTS + 1)]
    print(f"| {name} | {' | '.join(f'{100 * cell:.1f} %' for cell in (*cells, known_right.mean()))} |")


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """Scenes and their images."""

    scenes: list[Scene]
    pixels: list[np.ndarray]

    @classmethod
    def sample(cls, seed: int, count: int, *, held_out: bool = False, num_objects: int | None = None) -> "Images":
        images = cls([], [])
        for index in range(count):
            rng = np.random.default_rng([seed, index])
            images.scenes.append(sample_scene(rng, held_out, num_objects))
            images.pixels.append(render(images.scenes[-1], QuickstartConfig().world.side, rng))
        return images

    def __add__(self, other: "Images") -> "Images":
        return Images(self.scenes + other.scenes, self.pixels + other.pixels)

    def apply(self, program: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """Apply a program to batches of images [B, S, S, 3]; all counts are multiples of the batch size."""
        starts = range(0, len(self.pixels), BATCH_SIZE)
        return np.concatenate([program(np.stack(self.pixels[start : start + BATCH_SIZE])) for start in starts])

    def labels(self) -> np.ndarray:
        return np.array([scene_labels(scene) for scene in self.scenes])

    def survivors(self, images: np.ndarray) -> np.ndarray:
        """Return which scenes are read from other images without any mistake."""
        pairs = zip(images, self.scenes, strict=True)
        return np.array([compare(read_image(image), scene).all_correct for image, scene in pairs])


def autoencoder(directory: Path) -> Callable[[np.ndarray], np.ndarray]:
    """Return a program that encodes and decodes images with the autoencoder of a decoder."""
    stored = model_dir.load(directory)
    decoder = Unclip(UnclipConfig.from_dict(stored.config["sizes"]))

    @jax.jit
    def reconstruct(params, pixels):
        images = decoder.decode_latents(params, decoder.encode_image(params, pixels / jnp.float32(255)).mean)
        return jnp.clip(jnp.round(255 * images), 0, 255).astype(jnp.uint8)

    return lambda pixels: np.asarray(reconstruct(stored.params, pixels))


def train_probe(vectors: np.ndarray, labels: np.ndarray, hidden: int) -> Probe:
    """Return a function from embeddings to labels; `hidden` is the width of its hidden layer, 0 for none."""
    mean, deviation = vectors.mean(0), vectors.std(0)
    inputs = (vectors - mean) / deviation
    width, outputs = inputs.shape[1], int(CUTS[-1])
    params: dict[str, Any] = {"out": jnp.zeros((hidden or width, outputs)), "bias": jnp.zeros(outputs)}
    if hidden:
        params["hidden"] = jax.random.normal(jax.random.key(0), (width, hidden)) / width**0.5

    def logits(params, batch):
        features = jax.nn.gelu(batch @ params["hidden"]) if hidden else batch
        return jnp.split(features @ params["out"] + params["bias"], CUTS[:-1], -1)

    def loss(params, batch, targets):
        terms = [
            optax.softmax_cross_entropy_with_integer_labels(values, targets[:, index]).mean()
            for index, values in enumerate(logits(params, batch))
        ]
        return sum(terms)

    optimizer = optax.adam(optax.cosine_decay_schedule(PEAK_LR, STEPS))

    @jax.jit
    def step(params, state, batch, targets):
        updates, state = optimizer.update(jax.grad(loss)(params, batch, targets), state)
        return optax.apply_updates(params, updates), state

    state, rng = optimizer.init(params), np.random.default_rng(0)
    for _ in range(STEPS):
        chosen = rng.integers(0, len(inputs), PROBE_BATCH_SIZE)
        params, state = step(params, state, inputs[chosen], labels[chosen])
    return lambda batch: np.stack(
        [np.argmax(values, -1) for values in logits(params, (batch - mean) / deviation)], axis=-1
    )


if __name__ == "__main__":
    main()
