"""Sampling: turns prompts into videos."""
