# A server on Cloud TPU (v4, v5e, v5p, v6e). Build from the root of the checkout:
#   docker build --file launch/docker/serve_tpu.Dockerfile --tag us-docker.pkg.dev/PROJECT/REPOSITORY/seed_jax:serve-tpu .
# launch/serve_gke.sh runs it. On a TPU VM: docker run --rm --privileged --net=host --volume=/models:/models:ro --env=SEED_JAX_API_KEY IMAGE --model /models/bundle
FROM python:3.12-slim
ARG EXTRAS=serve,decoder,tpu
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 JAX_COMPILATION_CACHE_DIR=/var/cache/seed_jax
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
