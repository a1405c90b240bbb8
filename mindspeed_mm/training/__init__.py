"""Training: joins data, networks, diffusion, optimizer and checkpoints into a run."""
