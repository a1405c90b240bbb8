"""Plans a run on paper: which layouts fit the memory of a card. Imports neither torch nor megatron-core."""
