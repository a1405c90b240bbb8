"""Steps between the gradients and the weights, around Megatron's optimizer."""
