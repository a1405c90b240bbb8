"""Low-rank adapters on the linears of any network."""
