"""From clips to batches: samples, their order, the loader."""
