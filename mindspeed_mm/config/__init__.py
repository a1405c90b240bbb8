"""Typed configuration: turns argv and JSON into one tree of frozen dataclasses. Nothing here imports torch."""
