"""Code that knows process groups. The only folder that imports megatron.core (through `megatron.py`)."""
