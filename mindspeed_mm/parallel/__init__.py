"""Everything that knows a process group. The only folder that imports megatron.core (through `megatron.py`)."""
