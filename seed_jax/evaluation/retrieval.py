"""Zero-shot retrieval: recall of an image's captions among all captions, and of a caption's image (spec A.11).

`ImageTextEncoder` embeds images and captions with the weights of a model directory. Scores are inner products of unit
vectors, without re-ranking. A candidate whose score equals the correct one's is ranked before it, so that codes which
make images indistinguishable do not profit from ties.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float, Int
from PIL import Image

from seed_jax import images, sharding
from seed_jax.checkpoint import model_dir
from seed_jax.checkpoint.kinds import ModelKind
from seed_jax.convert.tensors import open_tensors
from seed_jax.convert.tokenizer import pretrained
from seed_jax.convert.tokenizer.key_table import SHARED_MODULES, image_text_table
from seed_jax.convert.tokenizer.official_import import EXTRAS
from seed_jax.data.text import bert
from seed_jax.data.text.bert import BertVocabulary
from seed_jax.errors import UserError
from seed_jax.evaluation.metrics.recall import BLOCK_SIZE, ranks_by_embeddings
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.models.tokenizer.image_text import ImageText, ImageTextConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizer, SeedTokenizerConfig
from seed_jax.typing import Tree

_TEXT_LENGTH = 35  # tokens, the original's
_BATCH = 8


@dataclasses.dataclass(frozen=True, eq=False)
class PairEmbeddings:
    """Unit vectors of images and captions.

    Attributes:
        images: one row per image.
        texts: one row per caption.
        image_of_text: index of each caption's image.
    """

    images: Float[np.ndarray, "N E"]
    texts: Float[np.ndarray, "M E"]
    image_of_text: Int[np.ndarray, " M"]


def recall(
    embeddings: PairEmbeddings, ks: Sequence[int] = (1, 5, 10), block_size: int = BLOCK_SIZE
) -> dict[str, float]:
    """Return the fraction of queries with a correct candidate among the best k: `i2t_recall@k` and `t2i_recall@k`.

    Any of an image's captions is correct. An image without captions is a candidate but no query.

    Args:
        embeddings: of the evaluation set.
        ks: numbers of candidates.
        block_size: queries whose scores are held in memory at a time.
    """
    ranks = ranks_by_embeddings(embeddings.images, embeddings.texts, embeddings.image_of_text, block_size)
    recalls = ranks.recalls(ks)
    return {name: value for name, value in recalls.items() if name != "mean_recall"}


class ImageTextEncoder:
    """Embeds images, by causal embeddings and by codes, and captions into stage I's joint space.

    Args:
        directory: an imported image tokenizer with its `extras.safetensors`, or a workdir of stage II, whose text side
            is that of stage I.
        vocabulary: vocab.txt of bert-base-uncased or its directory; None takes the one in the model directory.

    Raises:
        UserError: the directory has no text side or no vocabulary.
    """

    def __init__(self, directory: Path, vocabulary: Path | None = None):
        loaded = model_dir.open_lazily(directory, ModelKind.IMAGE_TOKENIZER)
        sizes = SeedTokenizerConfig.from_dict(loaded.config.get("sizes", {}), loaded.config_path)
        tokenizer = SeedTokenizer(sizes)
        config, params = _text_side(loaded, sizes)
        self._model = model = ImageText(config)
        self._params: Tree = jax.tree.map(jnp.asarray, params)
        self._tokenizer = ImageTokenizer.load(directory, batch_size=_BATCH)
        self._vocabulary = _vocabulary(loaded.directory, vocabulary)

        def embed_images(params: Tree, weights: Tree, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
            encoded: Any = tokenizer.apply({"params": weights}, images.normalize(pixels), method="encode")
            reconstructed: Any = tokenizer.apply({"params": weights}, encoded.codes, method="reconstruct_codes")
            states = jnp.concatenate([encoded.embeddings, reconstructed]).astype(jnp.float32)
            vectors: Any = model.apply({"params": params}, states, method="project")
            return vectors[: len(pixels)], vectors[len(pixels) :]

        def embed_texts(params: Tree, ids: jax.Array, mask: jax.Array) -> jax.Array:
            vectors: Any = model.apply({"params": params}, ids, mask, method="embed_text")
            return vectors

        self._embed_images: Callable[..., Any] = jax.jit(embed_images)
        self._embed_texts: Callable[..., Any] = jax.jit(embed_texts)

    def embed_images(self, batch: Sequence[Image.Image]) -> tuple[Float[np.ndarray, "N E"], Float[np.ndarray, "N E"]]:
        """Return unit vectors of images, from their causal embeddings and from their codes."""
        parts = []
        for start in range(0, len(batch), _BATCH):
            pixels = [self._tokenizer.pixels(image) for image in batch[start : start + _BATCH]]
            padded = np.stack([*pixels, *[pixels[-1]] * (_BATCH - len(pixels))])
            parts.append([np.asarray(part)[: len(pixels)] for part in
                          self._embed_images(self._params, self._tokenizer.params, padded)])  # fmt: skip
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def embed_texts(self, captions: Sequence[str]) -> Float[np.ndarray, "N E"]:
        """Return unit vectors of captions."""
        rows = [self._vocabulary.pad(bert.clean(caption), _TEXT_LENGTH) for caption in captions]
        parts = []
        for start in range(0, len(rows), _BATCH):
            part = rows[start : start + _BATCH]
            padded = [*part, *[part[-1]] * (_BATCH - len(part))]
            ids, mask = np.stack([row.ids for row in padded]), np.stack([row.mask for row in padded])
            parts.append(np.asarray(self._embed_texts(self._params, ids, mask))[: len(part)])
        return np.concatenate(parts)


def _text_side(loaded: model_dir.ModelDir, sizes: SeedTokenizerConfig) -> tuple[ImageTextConfig, Tree]:
    """Return sizes and parameters of the image-text model that an image tokenizer belongs to."""
    variables, extras = loaded.variables, loaded.directory / EXTRAS
    joint_width, qformer = loaded.config.get("joint_width", 0), sizes.qformer
    if not joint_width and extras.is_file():
        tensors = open_tensors(extras)
        if "text_proj.weight" in tensors:
            joint_width = tensors["text_proj.weight"].shape[0]
            words = next((tensor.shape[0] for name, tensor in tensors.items() if "word_embeddings" in name), 0)
            qformer = dataclasses.replace(qformer, vocab_size=words)
    if not joint_width:
        raise UserError(
            f"{loaded.directory} has no text side to compare captions with: retrieval needs a tokenizer imported with"
            f" its {EXTRAS}, or a workdir of configs/tokenizer_codebook.py that started from stage I."
        )
    config = ImageTextConfig(sizes.vit, qformer, joint_width, sizes.ln_vision_epsilon)
    params = {name: variables["params"][name] for name in SHARED_MODULES}
    if "retrieval" in variables:
        params |= dict(variables["retrieval"])
    else:
        size = sizes.image_size
        shapes = sharding.unbox(
            jax.eval_shape(
                lambda: ImageText(config).init(
                    jax.random.key(0), jnp.zeros((1, size, size, 3)), jnp.zeros((1, 4), jnp.int32)
                )
            )
        )["params"]
        text = pretrained.load_pretrained(pretrained.EXTRAS, extras, image_text_table(config), shapes)
        params = unflatten_dict({**flatten_dict(params), **flatten_dict(text)})
        model_dir.check_tree(params, shapes, str(extras))
    return config, jax.tree.map(np.asarray, params)


def _vocabulary(directory: Path, given: Path | None) -> BertVocabulary:
    if given is None and not (directory / bert.FILE).is_file():
        raise UserError(
            f"{directory} has no {bert.FILE}: give the vocab.txt of bert-base-uncased with --text-vocabulary."
        )
    return BertVocabulary.load(given or directory)
