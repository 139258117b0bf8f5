"""Workers beside the language model: images to codes, and codes to images, in separate batches."""

from seed_jax.serving.images.draw_worker import DrawJob, DrawWorker
from seed_jax.serving.images.encode_worker import EncodeWorker

__all__ = ["DrawJob", "DrawWorker", "EncodeWorker"]
