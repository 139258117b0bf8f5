"""Evaluate stage II on held-out images: codebook usage, and retrieval with causal embeddings and with codes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from seed_jax import images
from seed_jax.data.inspect.code_usage import code_stats
from seed_jax.evaluation.eval_pairs import EvalPairs
from seed_jax.evaluation.retrieval import PairEmbeddings, recall
from seed_jax.losses.tokenizer import cosine_distance
from seed_jax.train.stages.codebook.model import CodebookModel
from seed_jax.typing import Tree


def codebook_evaluation(model: CodebookModel, held_out: EvalPairs) -> Callable[[Tree], dict[str, float]]:
    """Return a function from variables to metrics; retrieval is among them where the model has a text side."""

    image_text: Any = model.image_text

    def encode_images(variables: Tree, rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
        params = {"params": variables["params"]}
        encoded: Any = model.tokenizer.apply(params, images.normalize(rows["image"]), method="encode")
        reconstructed: Any = model.tokenizer.apply(params, encoded.codes, method="reconstruct_codes")
        outputs = {"codes": encoded.codes, "distance": cosine_distance(reconstructed, encoded.embeddings)}
        if model.image_text is not None:
            outputs["embedding"] = _project(model, variables, encoded.embeddings)
            outputs["code"] = _project(model, variables, reconstructed)
        return outputs

    def embed_texts(variables: Tree, rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
        params = {"params": model.image_text_params(variables)}
        vector: Any = image_text.apply(params, rows["text"], rows["text_mask"], method="embed_text")
        return {"vector": vector}

    def run(variables: Tree) -> dict[str, float]:
        outputs = held_out.embed_images(encode_images, variables)
        stats = code_stats(outputs["codes"], model.sizes.tokenizer.num_codes)
        used = stats.used / len(stats.counts)
        metrics = {
            "codes_used": used,
            "code_perplexity": stats.perplexity,
            "codes_dead": 1 - used,
            "distinct_images": len(np.unique(outputs["codes"], axis=0)) / len(outputs["codes"]),
            "reconstruction_distance": float(outputs["distance"].mean()),
        }
        if model.image_text is None:
            return metrics
        text_vectors = held_out.embed_captions(embed_texts, variables)["vector"]
        for kind in ("embedding", "code"):
            recalls = recall(PairEmbeddings(outputs[kind], text_vectors, held_out.image_of_text))
            metrics |= {f"{kind}_{name}": value for name, value in recalls.items()}
        return metrics

    return run


def _project(model: CodebookModel, variables: Tree, states: jax.Array) -> jax.Array:
    params = {"params": model.image_text_params(variables)}
    image_text: Any = model.image_text
    return image_text.apply(params, states.astype(jnp.float32), method="project")
