"""Pure functions on tensors, without parameters or process groups. `tensor.device.type` selects the kernel."""
