"""What is measured on held pictures while the codebook trains: its use; retrieval with embeddings and with codes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from seed_jax import images
from seed_jax.data.inspect.code_usage import code_stats
from seed_jax.evaluation.eval_pairs import HeldPairs
from seed_jax.evaluation.retrieval import Vectors, recall
from seed_jax.losses.tokenizer import cosine_distance
from seed_jax.train.stage import Evaluator
from seed_jax.train.stages.codebook.model import CodebookModel

Tree = dict[str, Any]
Measure = Callable[[Tree], dict[str, float]]


def make_evaluators(
    config: ml_collections.ConfigDict, model: CodebookModel, held: HeldPairs | None
) -> tuple[Evaluator, ...]:
    """Return the measurements that the held set and the model allow."""
    if held is None:
        return ()
    return (Evaluator("held", config.evaluate.every_steps, _measure(model, held)),)


def _measure(model: CodebookModel, held: HeldPairs) -> Measure:
    def pictures(variables: Tree, rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
        params = {"params": variables["params"]}
        encoded = model.tokenizer.apply(params, images.normalize(rows["image"]), method="encode")
        rebuilt = model.tokenizer.apply(params, encoded.codes, method="reconstruct_codes")
        found = {"codes": encoded.codes, "distance": cosine_distance(rebuilt, encoded.embeddings)}
        if model.image_text is not None:
            found["embedding"] = _project(model, variables, encoded.embeddings)
            found["code"] = _project(model, variables, rebuilt)
        return found

    def texts(variables: Tree, rows: dict[str, jax.Array]) -> dict[str, jax.Array]:
        params = {"params": model.image_text_params(variables)}
        embed = model.image_text.apply(params, rows["text"], rows["text_mask"], method="embed_text")
        return {"vector": embed}

    def run(variables: Tree) -> dict[str, float]:
        found = held.over_pictures(pictures, variables)
        stats = code_stats(found["codes"], model.sizes.tokenizer.num_codes)
        measured = {
            "codes_used": stats.used / len(stats.counts),
            "code_perplexity": stats.perplexity,
            "codes_dead": 1 - stats.used / len(stats.counts),
            "pictures_told_apart": len(np.unique(found["codes"], axis=0)) / len(found["codes"]),
            "reconstruction_distance": float(found["distance"].mean()),
        }
        if model.image_text is None:
            return measured
        words = held.over_captions(texts, variables)["vector"]
        for kind in ("embedding", "code"):
            ranked = recall(Vectors(found[kind], words, held.image_of_text))
            measured |= {f"{kind}_{name}": value for name, value in ranked.items()}
        return measured

    return run


def _project(model: CodebookModel, variables: Tree, states: jax.Array) -> jax.Array:
    params = {"params": model.image_text_params(variables)}
    return model.image_text.apply(params, states.astype(jnp.float32), method="project")
