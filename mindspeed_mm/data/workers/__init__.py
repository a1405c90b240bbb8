"""A pool of processes with a time limit per item, and video tensors in memory that they share."""
