#!/usr/bin/env bash
# Measure one GPU of 80 GiB or more in 8 minutes: benchmarks/gpu.sh [OUT] [ARGUMENT OF run.py]...
# Needs jax with CUDA, flax, optax, orbax-checkpoint, tensorstore, transformers, torch, safetensors, sentencepiece and
# jaxtyping. Wheels of what else is imported (benchmarks/gpu-wheels.txt, 7 MiB) are taken from WHEELS if it is set:
#   pip download --no-deps -d wheels -r benchmarks/gpu-wheels.txt && WHEELS=wheels benchmarks/gpu.sh
# Rows are written to OUT/rows.jsonl as they come, the table to OUT/results.md at the end.
set -euo pipefail
out=${1:-benchmark-results}
shift || true
mkdir -p "$out"
out=$(cd "$out" && pwd)
wheels=${WHEELS:+$(cd "$WHEELS" && pwd)}
cd "$(dirname "$0")/.."
if [ -n "$wheels" ]; then
  site=$(mktemp -d)
  python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$wheels"/*.whl
  export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi
command -v nvidia-smi > /dev/null && nvidia-smi --query-gpu=name,memory.total,memory.used --format=csv,noheader || true
exec python3 benchmarks/run.py --suite gpu --out "$out" "$@"
