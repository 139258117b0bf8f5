# Cloud TPU (v4, v5e, v5p, v6e). Build from the root of the checkout:
#   docker build --file launch/docker/tpu.Dockerfile --tag us-docker.pkg.dev/PROJECT/REPOSITORY/seed_jax:tpu .
# launch/gke.sh runs it. On a TPU VM: docker run --rm --privileged --net=host IMAGE --config=... --workdir=gs://...
FROM python:3.12-slim
# EXTRAS=tpu,demo also runs the :tiny configs.
ARG EXTRAS=tpu
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1
WORKDIR /opt/seed_jax

# The dependencies are a layer of their own, which a change of the code leaves alone.
COPY setup.py pyproject.toml README.md LICENSE ./
RUN mkdir seed_jax && touch seed_jax/__init__.py && pip install ".[${EXTRAS}]" && pip uninstall --yes seed-jax

COPY seed_jax seed_jax
COPY configs configs
RUN pip install --no-deps --editable .

# Exec form: the training is process 1 and SIGTERM reaches it.
ENTRYPOINT ["python", "-m", "seed_jax.main"]
