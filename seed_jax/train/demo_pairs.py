"""The embedded data for training the image tokenizer: the photographs of `demo`, as pictures with captions."""

import dataclasses
import logging
import shutil
from pathlib import Path

from seed_jax.data import bert_vocab, build
from seed_jax.data.build_settings import Settings
from seed_jax.data.sources import open_source
from seed_jax.train import demo

VOCABULARY_SIZE = 160


@dataclasses.dataclass(frozen=True)
class DemoPairs:
    """Where the parts of the embedded data lie."""

    directory: Path

    @property
    def vocabulary(self) -> Path:
        return self.directory / bert_vocab.FILE

    @property
    def shards(self) -> Path:
        return self.directory / "shards"

    @property
    def held(self) -> Path:
        return self.directory / "held_shards"


def prepare(directory: Path) -> DemoPairs:
    """Make the data in `directory`, or use what an earlier run left there whole."""
    if directory.exists():
        return DemoPairs(directory)
    temporary = directory.with_name(f".{directory.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    logging.info("Making the embedded data set in %s.", directory)
    draft = DemoPairs(temporary)
    demo.write_pictures(temporary)
    captions = [caption for several in demo.CAPTIONS.values() for caption in several]
    bert_vocab.train_small(captions, VOCABULARY_SIZE).save(draft.vocabulary)
    for folder, shards in (("pictures", draft.shards), ("held", draft.held)):
        build.build(open_source("folder", [temporary / folder]), shards, settings=Settings(progress=False))
    temporary.rename(directory)
    return DemoPairs(directory)
