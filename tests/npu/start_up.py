"""Run as a script with PYTHONPATH set: prepares the NPU platform as a program does, and prints what it found as JSON.

Arguments: the folder of the stand-ins for CANN or "none", then flags of a training run, which MindSpeed must not see.
"""

import json
import os
import sys
from pathlib import Path


def main() -> None:
    libraries = sys.argv[1]
    if libraries != "none":
        from simulation import stand_ins

        stand_ins.load(Path(libraries))
    from mindspeed_mm.errors import ConfigError
    from mindspeed_mm.platforms.npu import NpuPlatform

    platform = NpuPlatform("auto")
    found: dict = {}
    try:
        platform.prepare(allow_tf32=True)
    except ConfigError as error:
        found["error"] = str(error)
    else:
        import torch
        from mindspeed.megatron_adaptor import FOUND

        found.update(FOUND)
        found["argv after"] = sys.argv[2:]
        found["allow_hf32"] = [torch.npu.matmul.allow_hf32, torch.npu.conv.allow_hf32]
        kernel = platform.ema_adamw_kernel()
        found["kernel"] = None if kernel is None else kernel.__name__
    print(json.dumps(found), flush=True)
    os._exit(0)  # torch_npu's own shutdown waits for threads that the stand-ins do not have


if __name__ == "__main__":
    main()
