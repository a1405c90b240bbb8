"""Typed configuration: argv and JSON in, one frozen dataclass tree out. Nothing here imports torch."""
