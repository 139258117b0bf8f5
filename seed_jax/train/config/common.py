"""Options that every stage has."""

import dataclasses
import re
from typing import Any

from seed_jax.errors import UserError
from seed_jax.train.config.evaluation import training_tasks
from seed_jax.train.config.schema import CANNOT_RUN, Problems, Section, negative, not_one_of, not_positive, not_ratio

DTYPES = ("float32", "bfloat16")
# bfloat16 resolves steps of 1/256: with a larger b2 the update of the second moment would be rounded away.
MAX_BFLOAT16_B2 = 0.99
# Parts of the names of metrics that are better when they are lower.
_LOWER_IS_BETTER = ("loss", "distance", "fid", "cmmd", "dead")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig(Section):
    """AdamW and its learning rate (spec A.9, D.2).

    Attributes:
        schedule: "warmup_cosine" or "epochs", the stepwise schedule of the original's tokenizer stages.
        peak_lr: learning rate at the end of the warm-up.
        slow: names of modules and parameters that learn at `slow_ratio` times the rate: those that are pretrained,
            beside others that start from random weights.
        slow_ratio: see `slow`.
        min_lr_ratio: final learning rate as a share of `peak_lr`.
        warmup_ratio: share of all steps that warm up (warmup_cosine).
        warmup_steps: steps that warm up (epochs).
        warmup_start_ratio: first learning rate as a share of `peak_lr` (epochs).
        epoch_steps: steps of an epoch (epochs).
        epochs: number of epochs (epochs).
        b1: decay of the first moment.
        b2: decay of the second moment.
        eps: added to the root of the second moment.
        weight_decay: of matrices; biases, norm scales and the temperature are not decayed.
        clip_norm: global gradient norm to clip to; 0 does not clip.
        moments: dtype that the moments are stored in, "float32" or "bfloat16".
        accumulation: microbatches of a step; 0 takes as many as the accelerator's memory asks for. Sums are exact.
    """

    schedule: str = "warmup_cosine"
    peak_lr: float = 1e-4
    slow: tuple[str, ...] = ()
    slow_ratio: float = 0.1
    min_lr_ratio: float = 0.1
    warmup_ratio: float = 0.03
    warmup_steps: int = 2000
    warmup_start_ratio: float = 0.01
    epoch_steps: int = 5000
    epochs: int = 1
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.05
    clip_norm: float = 0.0
    moments: str = "float32"
    accumulation: int = 1

    def problems(self) -> Problems:
        yield from not_positive(self, "peak_lr", "epoch_steps", "epochs")
        yield from negative(self, "accumulation", "clip_norm", "weight_decay", "eps", "warmup_steps")
        yield from not_ratio(self, "slow_ratio", "min_lr_ratio", "b1", "b2")
        yield from not_ratio(self, "warmup_start_ratio" if self.schedule == "epochs" else "warmup_ratio")
        yield from not_one_of(self, schedule=("warmup_cosine", "epochs"), moments=DTYPES)
        if self.moments == "bfloat16" and self.b2 > MAX_BFLOAT16_B2:
            yield (
                "b2",
                (
                    f"is {self.b2}, expected at most {MAX_BFLOAT16_B2} with optimizer.moments=bfloat16: bfloat16 would "
                    "round the update of the second moment away"
                ),
            )


@dataclasses.dataclass(frozen=True)
class PrecisionConfig(Section):
    """Dtypes. Trained parameters and optimizer moments are float32, except `optimizer.moments`.

    Attributes:
        frozen: of parameters that are not trained.
        compute: of matrix products and activations.
    """

    frozen: str = "bfloat16"
    compute: str = "bfloat16"

    def problems(self) -> Problems:
        yield from not_one_of(self, frozen=DTYPES, compute=DTYPES)


@dataclasses.dataclass(frozen=True)
class MeshConfig(Section):
    """Devices along each mesh axis; one of them may be -1, which takes the rest.

    Attributes:
        replica: data parallelism with replicated parameters; across slices this axis goes over DCN.
        fsdp: data parallelism with sharded parameters.
        tensor: tensor parallelism.
    """

    replica: int = 1
    fsdp: int = -1
    tensor: int = 1

    def to_dict(self) -> dict[str, int]:
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(Section):
    """When to save, and how many checkpoints to keep.

    Attributes:
        every_steps: save after every so many steps; the last step is always saved.
        every_minutes: save also when so much time has passed since the last save; 0 does not.
        keep_last: newest checkpoints to keep.
        keep_every: keep checkpoints of every so many steps for good; 0 keeps none.
        keep_best: metric of an evaluation, such as "eval/loss" or "coco_caption/CIDEr": the checkpoint of its best
            value is saved and kept, and is the one that other commands load; "" keeps none.
        best_mode: "min", "max", or "auto", which is "min" for losses and distances.
    """

    every_steps: int = 1000
    every_minutes: float = 0.0
    keep_last: int = 3
    keep_every: int = 0
    keep_best: str = ""
    best_mode: str = "auto"

    @property
    def mode(self) -> str:
        """`best_mode` with "auto" resolved."""
        if self.best_mode != "auto":
            return self.best_mode
        last = self.keep_best.rsplit("/", 1)[-1].lower()
        return "min" if any(part in last for part in _LOWER_IS_BETTER) else "max"

    def problems(self) -> Problems:
        yield from not_one_of(self, best_mode=("auto", "min", "max"))
        yield from not_positive(self, "every_steps", "keep_last")
        yield from negative(self, "every_minutes", "keep_every")


@dataclasses.dataclass(frozen=True)
class GuardConfig(Section):
    """What to do about steps that would harm the model.

    Attributes:
        nonfinite: "raise" ends the run at a loss or gradient that is not finite, "skip" leaves the step out.
        spike: skip steps whose loss exceeds its running mean by so many standard deviations; 0 does not.
    """

    nonfinite: str = "raise"
    spike: float = 0.0

    def problems(self) -> Problems:
        yield from not_one_of(self, nonfinite=("raise", "skip"))
        yield from negative(self, "spike")


@dataclasses.dataclass(frozen=True)
class WatchdogConfig(Section):
    """When to end a process that hangs, so that a launcher restarts it; 0 never does.

    Attributes:
        hung_minutes: without a finished step.
        lost_seconds: without a heartbeat of another host.
    """

    hung_minutes: float = 30.0
    lost_seconds: float = 30.0

    def problems(self) -> Problems:
        yield from negative(self, "hung_minutes", "lost_seconds")


@dataclasses.dataclass(frozen=True)
class ProfileConfig(Section):
    """Profiling.

    Attributes:
        steps: steps to trace into `workdir/profile`, such as "10-12"; "" traces none.
    """

    steps: str = ""

    @property
    def range(self) -> range:
        """The steps as a range; empty for ""."""
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", self.steps)
        return range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)

    def problems(self) -> Problems:
        if self.steps and (not self.range or self.range.start < 1):
            yield "steps", f"is {self.steps!r}, expected steps such as 10-12, or '' for none"


@dataclasses.dataclass(frozen=True)
class WandbConfig(Section):
    """Weights & Biases.

    Attributes:
        project: to log to; "" logs nothing.
    """

    project: str = ""


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Section):
    """Evaluation on held-out data while training.

    Attributes:
        data: directory of shards that are not trained on; "" evaluates nothing.
        every_steps: evaluate after every so many steps and after the last; 0 never does.
        max_samples: evaluate on at most so many samples; 0 takes all.
        patience: end the run after so many evaluations of `checkpoint.keep_best` without a better one; 0 never does.
        tasks: tasks of `seed-jax eval` to run as well, each with options of `TrainingTaskConfig`, such as
            {"task": "coco_caption", "data": "data/coco", "limit": 200, "every_steps": 500}.
        image_tokenizer: directory of the image tokenizer that tasks use; "" takes the demo's.
        decoder: directory of the image decoder, for tasks that draw.
        clip: folder of a Hugging Face CLIP model, for tasks that compare images.
    """

    data: str = ""
    every_steps: int = 1000
    max_samples: int = 5000
    patience: int = 0
    tasks: tuple[dict[str, Any], ...] = ()
    image_tokenizer: str = ""
    decoder: str = ""
    clip: str = ""

    def problems(self) -> Problems:
        yield from negative(self, "every_steps", "max_samples", "patience")
        try:
            training_tasks(self.tasks)
        except UserError as error:
            problem = str(error).removeprefix(CANNOT_RUN).removesuffix(".")
            yield "tasks", f"has an entry that cannot be run: {problem}"


@dataclasses.dataclass(frozen=True)
class ImageDataConfig(Section):
    """Batches of images that are decoded while training.

    Attributes:
        demo: make a small data set below the workdir.
        mixture: shard directories, each {"path", "weight"}.
        batch_size: images of the global batch.
        workers: processes of each host that decode and augment; 0 uses threads.
        prefetch: batches to prepare ahead.
        flip: probability of a horizontal flip.
    """

    demo: bool = False
    mixture: tuple[dict[str, Any], ...] = ({"path": "data/pairs", "weight": 1.0},)
    batch_size: int = 256
    workers: int = 8
    prefetch: int = 4
    flip: float = 0.5

    def problems(self) -> Problems:
        yield from not_positive(self, "batch_size")
        yield from negative(self, "workers", "prefetch")
        yield from not_ratio(self, "flip")
        for entry in self.mixture:
            if not isinstance(entry.get("path"), str) or not isinstance(entry.get("weight", 1.0), int | float):
                yield "mixture", f'holds {entry!r}, expected entries {{"path": DIR, "weight": number}}'


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Section):
    """Options of every stage.

    Attributes:
        stage: name of the stage, see `seed_jax.train.stages.registry`.
        seed: of initialisation, dropout and the order of the data.
        steps: optimizer steps of the run.
        log_every: steps between reports.
        compiler: XLA options as "name=value,name=value", over those of `seed_jax/accelerators.py`; "name=" drops one of
            these.
        layer_norms: report norms of gradients and parameters layer by layer.
    """

    stage: str = ""
    seed: int = 42
    steps: int = 1000
    log_every: int = 10
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: PrecisionConfig = PrecisionConfig()
    mesh: MeshConfig = MeshConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    guard: GuardConfig = GuardConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    profile: ProfileConfig = ProfileConfig()
    wandb: WandbConfig = WandbConfig()
    compiler: str = ""
    layer_norms: bool = False

    @property
    def compiler_options(self) -> dict[str, str]:
        """`compiler` as a dict."""
        pairs = [pair.partition("=") for pair in self.compiler.split(",") if pair]
        return {name.strip(): value.strip() for name, _, value in pairs}

    def problems(self) -> Problems:
        yield from not_positive(self, "steps", "log_every")
        yield from negative(self, "seed")
        if self.evaluate.patience and not self.checkpoint.keep_best:
            yield "evaluate.patience", "needs a metric: name it in checkpoint.keep_best, such as eval/loss"
        if any(not pair.partition("=")[0].strip() or "=" not in pair for pair in self.compiler.split(",") if pair):
            yield "compiler", f"is {self.compiler!r}, expected name=value pairs separated by commas"
        last = self.profile.range.stop - 1
        if last > self.steps:
            yield "profile.steps", f"is {self.profile.steps!r}, but the run has only {self.steps} steps"
