"""The version of the package."""

__version__ = "1.5.0"
