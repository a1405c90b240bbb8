"""Captions and prompts as the text encoders read them."""
