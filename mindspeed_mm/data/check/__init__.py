"""What `tools/check_dataset.py` looks at before a run."""
