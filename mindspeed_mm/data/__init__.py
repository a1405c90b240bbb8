"""Turns lists of clips into batches: chooses clips, frames, captions and their order."""
