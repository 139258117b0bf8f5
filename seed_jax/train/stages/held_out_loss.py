"""The loss on held-out data, as an evaluator of any stage."""

from collections.abc import Callable, Mapping

import jax
from jaxtyping import Array

from seed_jax import sharding
from seed_jax.data.shards.shards import open_shards
from seed_jax.train.config.common import EvaluateConfig
from seed_jax.train.stage import Batches, Evaluator, LossOutput
from seed_jax.typing import Tree

Loss = Callable[[Tree, Mapping[str, Array]], LossOutput]
MakeBatches = Callable[[list[int]], Batches]


def held_out_evaluators(
    evaluate: EvaluateConfig, loss: Loss, make_batches: MakeBatches, batch_size: int
) -> tuple[Evaluator, ...]:
    """Return the evaluator of the loss on `evaluate.data`, or none where it is never evaluated.

    Args:
        evaluate: held-out data, and how often and on how many samples to evaluate.
        loss: deterministic loss of a batch.
        make_batches: local rows of the global batch -> batches of `evaluate.data` in the same order at every call.
        batch_size: rows of the global batch.
    """
    if not evaluate.data or not evaluate.every_steps:
        return ()
    samples = len(open_shards(evaluate.data))
    samples = min(samples, evaluate.max_samples) if evaluate.max_samples else samples
    run = held_out_loss(loss, make_batches, batch_size=batch_size, num_batches=-(-samples // batch_size))
    return (Evaluator("eval", evaluate.every_steps, run),)


def held_out_loss(
    loss: Loss, make_batches: MakeBatches, *, batch_size: int, num_batches: int
) -> Callable[[Tree], dict[str, float]]:
    """Return a function from variables to the mean loss and metrics over the first batches of held-out data.

    Args:
        loss: deterministic loss of a batch.
        make_batches: local rows of the global batch -> batches in the same order at every call.
        batch_size: rows of the global batch.
        num_batches: batches to average over; sums and weights are added before dividing.
    """
    compiled = jax.jit(loss)

    def run(variables: Tree) -> dict[str, float]:
        batch_sharding = sharding.batch_sharding(jax.sharding.get_mesh())
        batches = make_batches(sharding.local_batch_indices(batch_sharding, batch_size))
        outputs = []
        for _ in range(num_batches):
            batch = sharding.shard_batch(next(batches), batch_sharding, batch_size)
            output = compiled(variables, batch)
            outputs.append({"loss": output.total, **output.metrics})
        batches.close()
        sums = outputs[0]
        for output in outputs[1:]:
            sums = {name: value + output[name] for name, value in sums.items()}
        return {name: float(value.mean) for name, value in sums.items()}

    return run
