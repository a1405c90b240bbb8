"""Notes what MindSpeed's adaptor finds when it is imported; it reads sys.argv then, and patches megatron.core."""

import sys

FOUND = {
    "argv": list(sys.argv),
    "torch_npu": "torch_npu" in sys.modules,
    "transfer_to_npu": "torch_npu.contrib.transfer_to_npu" in sys.modules,
    "megatron.core": any(name.startswith("megatron.core") for name in sys.modules),
}
