"""A stage that compiles in a moment: linear regression, for everything about the loop that is not about models."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key

from seed_jax.files import AnyPath
from seed_jax.losses.next_token import WeightedSum
from seed_jax.models.nn.layers import Dense
from seed_jax.train.config import TrainConfig
from seed_jax.train.config.common import CheckpointConfig, MeshConfig, OptimizerConfig, PrecisionConfig
from seed_jax.train.stage import Evaluator, LossOutput, Stage
from seed_jax.typing import ParamPath, Tree

WIDTH, ROWS = 8, 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToyConfig(TrainConfig):
    """Options of the toy stage.

    Attributes:
        poison_step: its batch holds a NaN; 0 for none.
    """

    stage: str = "toy"
    steps: int = 4
    log_every: int = 1
    optimizer: OptimizerConfig = OptimizerConfig(peak_lr=1e-2, warmup_ratio=0.5, b2=0.95)
    precision: PrecisionConfig = PrecisionConfig("float32", "float32")
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig(every_steps=100)
    poison_step: int = 0


class ToyBatches:
    """Rows of batch s come from Philox(key=s)."""

    def __init__(self, indices: list[int], poison_step: int):
        self.step, self._indices, self._poison_step = 0, indices, poison_step

    def __next__(self) -> dict[str, Any]:
        self.step += 1
        rng = np.random.Generator(np.random.Philox(key=self.step))
        x = rng.standard_normal((ROWS, WIDTH)).astype(np.float32)
        y = x.sum(-1, keepdims=True)
        if self.step == self._poison_step:
            y[0] = np.nan
        return {"x": x[self._indices], "y": y[self._indices]}

    def get_state(self) -> dict[str, Any]:
        return {"format": 1, "data": {}, "step": self.step, "lanes": {str(index): {} for index in self._indices}}

    def set_state(self, state: dict[str, Any]) -> None:
        self.step = state["step"]

    def close(self) -> None:
        pass


class ToyModel(nn.Module):
    @nn.compact
    def __call__(self, x: Array) -> Array:
        return Dense(2, name="layer")(x).sum(-1, keepdims=True)


class ToyStage(Stage[ToyConfig]):
    """Linear regression with one trained layer and one frozen constant."""

    config_class = ToyConfig
    kind = "toy"
    unit = "rows"

    def __init__(self, config: ToyConfig):
        super().__init__(config)
        self.model = ToyModel()
        self.finished = False

    @property
    def batch_size(self) -> int:
        return ROWS

    def _init(self, key: Array) -> Tree:
        return {"params": self.model.init(key, jnp.zeros((1, WIDTH)))["params"], "frozen": {"scale": jnp.ones(())}}

    def abstract_variables(self) -> Tree:
        return jax.eval_shape(lambda: self._init(jax.random.key(0)))

    def is_trainable(self, path: ParamPath) -> bool:
        return path[0] == "params"

    def loss(self, variables: Tree, batch: Mapping[str, Array], key: Key[Array, ""]) -> LossOutput:
        del key
        predicted = self.model.apply({"params": variables["params"]}, batch["x"]) * variables["frozen"]["scale"]
        terms = jnp.square(predicted - batch["y"])[:, 0]
        return LossOutput(WeightedSum.from_terms(terms, jnp.ones(len(terms))), {})

    def batch_spec(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {
            "x": jax.ShapeDtypeStruct((WIDTH,), jnp.float32),
            "y": jax.ShapeDtypeStruct((1,), jnp.float32),
        }

    def flops_per_unit(self) -> float:
        return 6.0 * WIDTH

    @property
    def flops_convention(self) -> str:
        return "6 FLOPs per parameter"

    def prepare(self, workdir: AnyPath) -> None:
        pass

    def init_variables(self, key: Key[Array, ""], shardings: Tree) -> Tree:
        from seed_jax import sharding

        return jax.jit(lambda key: sharding.unbox(self._init(key)), out_shardings=shardings)(key)

    def batches(self, local_indices: list[int]) -> ToyBatches:
        return ToyBatches(local_indices, self.config.poison_step)

    def model_config(self) -> dict[str, Any]:
        return {"sizes": {"width": WIDTH}}

    def evaluators(self) -> tuple[Evaluator, ...]:
        norm = lambda variables: {"norm": float(jnp.abs(variables["params"]["layer"]["kernel"]).sum())}  # noqa: E731
        every = self.config.evaluate.every_steps
        return (Evaluator("eval", every, norm),) if self.config.evaluate.data else ()

    def finish(self, variables: Tree, workdir: AnyPath) -> None:
        self.finished = True


def toy_config(**changes: Any) -> ToyConfig:
    """Return the config with dotted options changed, parsed as a run's config is."""
    from seed_jax.train.config import base, parse

    config = base(ToyConfig)
    config.update_from_flattened_dict(changes)
    return parse(ToyConfig, config)
