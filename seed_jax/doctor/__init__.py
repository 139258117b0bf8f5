"""What `seed-jax doctor` and `seed-jax verify official` examine: machine, model directories, numbers on this device."""
