"""Weights for others: the record of a run, its curves, a model card, and the upload to a hub."""
