"""The modules of stage II: the tokenizer, and beside it what retrieval and the text branch need."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Key

from seed_jax.convert.tokenizer.key_table import SHARED_MODULES
from seed_jax.models.abstract import traced_once
from seed_jax.models.tokenizer.image_text import ImageText, ImageTextConfig
from seed_jax.models.tokenizer.seed_tokenizer import SeedTokenizer, SeedTokenizerConfig
from seed_jax.models.tokenizer.text_branch import TextBranch, TextBranchConfig
from seed_jax.precision import Precision
from seed_jax.typing import Tree

RETRIEVAL = ("vision_proj", "text_proj", "temperature")


@dataclasses.dataclass(frozen=True)
class CodebookSizes:
    """Architecture of everything but the teachers.

    Attributes:
        tokenizer: of the image tokenizer.
        joint_width: width of stage I's projections; 0 where there is no text side and hence no retrieval.
        text_branch: of the text branch, if it is trained.
    """

    tokenizer: SeedTokenizerConfig
    joint_width: int = 0
    text_branch: TextBranchConfig | None = None

    @property
    def image_text(self) -> ImageTextConfig:
        tokenizer = self.tokenizer
        return ImageTextConfig(tokenizer.vit, tokenizer.qformer, self.joint_width, tokenizer.ln_vision_epsilon)

    @property
    def text_states(self) -> tuple[int, int] | None:
        """Number and width of the text states that SEED-1's head or the text branch predicts; None without either."""
        if self.tokenizer.predicts_text:
            branch = self.tokenizer.text_decoder
        elif self.text_branch is not None:
            branch = self.text_branch
        else:
            return None
        return branch.reverse.num_queries, branch.state_width

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for `config.json`."""
        branch = None if self.text_branch is None else self.text_branch.to_dict()
        return {"sizes": self.tokenizer.to_dict(), "joint_width": self.joint_width, "text_branch": branch}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], where: str) -> "CodebookSizes":
        """Read what `to_dict` wrote, or the `config.json` of an image tokenizer alone.

        Args:
            data: content of `config.json`.
            where: its path, for error messages.
        """
        branch = data.get("text_branch")
        return cls(
            SeedTokenizerConfig.from_dict(data.get("sizes", {}), where),
            data.get("joint_width", 0),
            None if branch is None else TextBranchConfig.from_dict(branch, f"{where}, text_branch,"),
        )


class CodebookModel:
    """The modules; their weights are the collections `params`, `retrieval` and `text_branch` of one tree."""

    def __init__(self, sizes: CodebookSizes, precision: Precision = Precision(), remat: bool = False):
        self.sizes = sizes
        self.tokenizer = SeedTokenizer(sizes.tokenizer, precision, remat)
        self.image_text = ImageText(sizes.image_text, precision) if sizes.joint_width else None
        self.branch = TextBranch(sizes.text_branch, precision, remat) if sizes.text_branch else None

    def abstract(self) -> Tree:
        """Return boxed shapes of the weights."""
        return _abstract(self.sizes, self.tokenizer.precision)

    def init(self, key: Key[Array, ""]) -> Tree:
        """Return fresh weights, boxed with logical axis names."""
        sizes = self.sizes.tokenizer
        keys = jax.random.split(key, 3)
        image = jnp.zeros((1, sizes.image_size, sizes.image_size, 3))
        variables = {"params": self.tokenizer.init(keys[0], image)["params"]}
        if self.image_text is not None:
            created = self.image_text.init(keys[1], image, jnp.zeros((1, 4), jnp.int32))["params"]
            variables["retrieval"] = {name: created[name] for name in RETRIEVAL}
        if self.branch is not None:
            up = jnp.zeros((1, sizes.codes_per_image, sizes.decoder.width))
            variables["text_branch"] = self.branch.init(keys[2], up)["params"]
        return variables

    @staticmethod
    def image_text_params(variables: Tree) -> Tree:
        """Return the parameters of the image-text model within the variables."""
        return {**{name: variables["params"][name] for name in SHARED_MODULES}, **variables["retrieval"]}


@traced_once
def _abstract(sizes: CodebookSizes, precision: Precision) -> Tree:
    return jax.eval_shape(lambda: CodebookModel(sizes, precision).init(jax.random.key(0)))
