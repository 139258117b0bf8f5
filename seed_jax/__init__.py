"""SEED and SEED-LLaMA in JAX: images as words that a language model reads and writes."""

__version__ = "0.1.0"
