"""Training the masked network: loop, evaluation, exact zeros, checkpoints."""
