"""The language model under training as the model that evaluation tasks answer with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from seed_jax.data.text.vocabulary import Vocabulary
from seed_jax.errors import UserError
from seed_jax.evaluation.eval_model import EvalModel
from seed_jax.inference.drawing.drawer import Drawer
from seed_jax.inference.generation.generator import Generator
from seed_jax.inference.image_tokenizer import ImageTokenizer
from seed_jax.inference.seed_llama import SeedLlama
from seed_jax.models.nn import lora
from seed_jax.models.nn.decoder_only import DecoderOnly
from seed_jax.precision import Precision
from seed_jax.train.config.common import EvaluateConfig
from seed_jax.typing import Tree


def eval_model(
    model: DecoderOnly,
    vocabulary: Vocabulary,
    style: str,
    compute: str,
    evaluate: EvaluateConfig,
    image_tokenizer: Path | None,
) -> Callable[[Tree], EvalModel]:
    """Return a function from the variables to the model as tasks use it; its programs are compiled once.

    Args:
        model: the module under training.
        vocabulary: of its text.
        style: prompt style.
        compute: compute dtype.
        evaluate: names the decoder and CLIP.
        image_tokenizer: directory of the image tokenizer.
    """
    mesh = jax.sharding.get_mesh()

    def open_tokenizer(batch_size: int) -> ImageTokenizer:
        if image_tokenizer is None:
            raise UserError("evaluate.image_tokenizer is empty: name the image tokenizer whose codes the data has.")
        return ImageTokenizer.load(image_tokenizer, batch_size=batch_size)

    def open_drawer() -> Drawer:
        return Drawer.load(evaluate.decoder, dtype=compute)

    opened: list[EvalModel] = []

    def update(variables: Tree) -> EvalModel:
        params: Any = variables["params"]
        if model.lora is not None:
            params = lora.merge(params, variables["lora"], model.lora)
        if opened:
            opened[0].model.generator.replace_params(params)
            return opened[0]
        generator = Generator(
            model.config,
            params,
            vocabulary,
            precision=Precision(compute, compute),
            mesh=mesh if mesh.size > 1 else None,
        )
        loaded = SeedLlama(generator, open_tokenizer, open_drawer, style)
        opened.append(EvalModel(loaded, Path(evaluate.clip) if evaluate.clip else None, image_tokenizer))
        return opened[0]

    return update
