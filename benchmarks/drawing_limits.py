"""What bounds the quickstart's drawings: its image embedding and its autoencoder, by the number of objects.

    python benchmarks/drawing_limits.py [--teacher T/teacher]

The decoder sees nothing of an image but the embedding of the teacher's vision tower (by default the packaged one): a
linear probe and one with a hidden layer learn to read all attributes of a scene from it, from 10,000 images of which
4,000 show three objects. And it draws latents: images are encoded and decoded by the autoencoder alone. Prints, as
Markdown, how many scenes come through without any mistake. Two or three minutes on a core.
"""

import argparse
import tempfile
from collections.abc import Callable, Sequence
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

STEPS, BATCH_SIZE, PEAK_LR, HIDDEN = 3000, 256, 3e-3, 512
CUTS = np.cumsum([classes for _, classes in ATTRIBUTES])
Probe = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", type=Path, help="directory of another teacher (variant teacher of the quickstart)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        teacher = args.teacher or Path(folder)
        if args.teacher is None:
            teacher_files.unpack(teacher)
        tower = Similarity(teacher / "vision")
        parts = [embed(tower, 1, 6000, False), embed(tower, 2, 4000, False, MAX_OBJECTS)]
        held_out = [embed(tower, 3, 1000, True), embed(tower, 4, 500, True, MAX_OBJECTS)]
        known = embed(tower, 5, 500, False, MAX_OBJECTS)
        through_latents = [autoencode(teacher / "unclip", 6, 1000, True), autoencode(teacher / "unclip", 7, 300, False)]
    vectors, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    held_out_vectors, held_out_labels = (np.concatenate(part) for part in zip(*held_out, strict=True))
    counts = held_out_labels[:, [name for name, _ in ATTRIBUTES].index("count")] + 1
    print("| | held-out combinations: one object | two | three | trained combinations: three |")
    print("|---|---:|---:|---:|---:|")
    for name, hidden in (("embedding, linear probe", 0), (f"embedding, hidden layer of {HIDDEN}", HIDDEN)):
        read = train_probe(vectors, labels, hidden)
        right = (read(held_out_vectors) == held_out_labels).all(-1)
        cells = [right[counts == count].mean() for count in range(1, MAX_OBJECTS + 1)]
        cells.append((read(known[0]) == known[1]).all(-1).mean())
        print_row(name, cells)
    (right, counts), (known_right, known_counts) = through_latents
    cells = [right[counts == count].mean() for count in range(1, MAX_OBJECTS + 1)]
    print_row("autoencoder", [*cells, known_right[known_counts == MAX_OBJECTS].mean()])


def print_row(name: str, cells: Sequence[float]) -> None:
    print(f"| {name} | {' | '.join(f'{100 * cell:.1f} %' for cell in cells)} |")


def sample_images(
    seed: int, count: int, held_out: bool, num_objects: int | None = None
) -> tuple[list[Scene], list[np.ndarray]]:
    """Return sampled scenes and their images."""
    scenes, pixels = [], []
    for index in range(count):
        rng = np.random.default_rng([seed, index])
        scenes.append(sample_scene(rng, held_out, num_objects))
        pixels.append(render(scenes[-1], QuickstartConfig().world.side, rng))
    return scenes, pixels


def autoencode(directory: Path, seed: int, count: int, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return which scenes survive the autoencoder of a decoder, and their numbers of objects."""
    stored = model_dir.load(directory)
    decoder = Unclip(UnclipConfig.from_dict(stored.config["sizes"]))

    @jax.jit
    def reconstruct(params, batch):
        return decoder.decode_latents(params, decoder.encode_image(params, batch).mean)

    scenes, pixels = sample_images(seed, count, held_out, None if held_out else MAX_OBJECTS)
    right = []
    for start in range(0, count, 100):
        images = np.asarray(reconstruct(stored.params, np.stack(pixels[start : start + 100]) / np.float32(255)))
        images = np.clip(np.round(255 * images), 0, 255).astype(np.uint8)
        right += [
            compare(read_image(image), scene).all_correct for image, scene in zip(images, scenes[start:], strict=False)
        ]
    return np.array(right), np.array([len(scene.objects) for scene in scenes])


def embed(
    tower: Similarity, seed: int, count: int, held_out: bool, num_objects: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the embeddings [count, E] and labels [count, A] of sampled scenes."""
    scenes, pixels = sample_images(seed, count, held_out, num_objects)
    batches = [np.stack(pixels[start : start + 250]) for start in range(0, count, 250)]
    vectors = np.concatenate([tower.unit_vectors(batch) for batch in batches])
    return vectors, np.array([scene_labels(scene) for scene in scenes])


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
        chosen = rng.integers(0, len(inputs), BATCH_SIZE)
        params, state = step(params, state, inputs[chosen], labels[chosen])
    return lambda batch: np.stack(
        [np.argmax(values, -1) for values in logits(params, (batch - mean) / deviation)], axis=-1
    )


if __name__ == "__main__":
    main()
