"""Pure functions on tensors: no parameters, no process groups. The kernel is picked by `tensor.device.type`."""
