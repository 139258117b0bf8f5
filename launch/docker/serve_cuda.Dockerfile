# A server on an NVIDIA GPU. Build from the root of the checkout:
#   docker build --file launch/docker/serve_cuda.Dockerfile --tag seed_jax:serve-cuda .
#   docker run --rm --init --gpus=all --publish=127.0.0.1:8000:8000 --volume=/models:/models:ro --env=SEED_JAX_API_KEY seed_jax:serve-cuda --model /models/bundle
# CUDA comes with the wheels; the host gives the driver (580 or newer, for CUDA 13) and the NVIDIA Container Toolkit.
FROM python:3.12-slim
ARG EXTRAS=serve,decoder,cuda
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 JAX_COMPILATION_CACHE_DIR=/var/cache/seed_jax NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /opt/seed_jax

# The dependencies are a layer of their own, which a change of the code leaves alone.
COPY setup.py pyproject.toml README.md LICENSE ./
RUN mkdir seed_jax && touch seed_jax/__init__.py && pip install ".[${EXTRAS}]" && pip uninstall --yes seed-jax

COPY seed_jax seed_jax
COPY configs configs
RUN pip install --no-deps --editable .

EXPOSE 8000
# Exec form: the server is process 1 and SIGTERM reaches it. It needs SEED_JAX_API_KEY to listen on all addresses.
ENTRYPOINT ["seed-jax", "serve", "--host", "0.0.0.0", "--port", "8000"]
