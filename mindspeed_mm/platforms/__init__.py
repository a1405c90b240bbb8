"""One class per kind of device. Only this folder knows `torch.cuda`, `torch_npu` and MindSpeed."""
