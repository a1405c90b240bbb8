"""Flow matching as free functions of tensors: no networks, no process groups, no state."""
