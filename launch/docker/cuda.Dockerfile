# NVIDIA GPUs. Build from the root of the checkout:
#   docker build --file launch/docker/cuda.Dockerfile --tag seed_jax:cuda .
#   docker run --rm --init --gpus=all --shm-size=8g --volume=/data:/data seed_jax:cuda --config=... --workdir=/data/run
# CUDA comes with the wheels; the host gives the driver (580 or newer, for CUDA 13) and the NVIDIA Container Toolkit.
FROM python:3.12-slim
# EXTRAS=cuda,demo also runs the :tiny configs.
ARG EXTRAS=cuda
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/seed_jax

# The dependencies are a layer of their own, which a change of the code leaves alone.
COPY setup.py pyproject.toml README.md LICENSE ./
RUN mkdir seed_jax && touch seed_jax/__init__.py && pip install ".[${EXTRAS}]" && pip uninstall --yes seed-jax

COPY seed_jax seed_jax
COPY configs configs
RUN pip install --no-deps --editable .

# Exec form: the training is process 1 and SIGTERM reaches it.
ENTRYPOINT ["python", "-m", "seed_jax.main"]
