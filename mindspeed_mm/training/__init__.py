"""Training: where data, networks, diffusion, optimizer and checkpoints meet."""
