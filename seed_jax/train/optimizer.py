"""AdamW as the original trains with: decay on matrices only, clipping by global norm."""

from typing import Any

import ml_collections
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from seed_jax.train import schedules

_UNDECAYED = ("bias", "scale", "q_bias", "v_bias", "temperature")


def decay_mask(params: dict[str, Any]) -> dict[str, Any]:
    """Return True for the tensors that weight decay shrinks: everything but biases, norm scales and scalars."""
    return unflatten_dict({path: path[-1] not in _UNDECAYED for path in flatten_dict(params)})


def make_schedule(config: ml_collections.ConfigDict, steps: int) -> optax.Schedule:
    """Return the learning rate of each step; `config.schedule` is "warmup_cosine" (default) or "epochs"."""
    kind = config.get("schedule", "warmup_cosine")
    if kind == "epochs":
        return schedules.epoch_cosine(
            config.peak_lr,
            epochs=config.epochs,
            epoch_steps=config.epoch_steps,
            warmup_steps=config.warmup_steps,
            warmup_start_ratio=config.warmup_start_ratio,
            min_ratio=config.min_lr_ratio,
        )
    return schedules.warmup_cosine(config.peak_lr, steps, config.warmup_ratio, config.min_lr_ratio)


def make_optimizer(config: ml_collections.ConfigDict, steps: int) -> optax.GradientTransformation:
    """Build clip -> AdamW from `config.optimizer` (spec D.2); a `clip_norm` of 0 leaves clipping out."""
    adamw = optax.adamw(
        make_schedule(config, steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=decay_mask,
    )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), adamw) if config.clip_norm else adamw
