"""Files of weights and training state: their layout, safe writing, and conversion between layouts."""
