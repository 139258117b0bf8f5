"""`python -m seed_jax.cli` is `seed-jax`."""

import sys

from seed_jax.cli import main

sys.exit(main())
