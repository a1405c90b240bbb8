"""Saving and resuming a run: its directory of checkpoints, who may write there, and which one it continues from."""
