"""Prepares captions and prompts for the text encoders."""
