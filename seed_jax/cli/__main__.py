"""Run `seed-jax` as `python -m seed_jax.cli`."""

import sys

from seed_jax.cli import main

sys.exit(main())
