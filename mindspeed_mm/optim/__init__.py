"""What happens between the gradients and the weights, around Megatron's optimizer and not instead of it."""
