"""Measures finished videos and weights: what `mindspeed-mm evaluate` prints."""
