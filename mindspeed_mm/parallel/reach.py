"""One of two ranks that sum a tensor: `python -m mindspeed_mm.parallel.reach DEVICE PORT RANK`, started by the doctor."""

import datetime
import sys

_RANKS = 2
_TIMEOUT_S = 60


def reach(device: str, port: int, rank: int) -> None:
    """Raises an error of torch if the ranks cannot meet at 127.0.0.1, or if the sum is wrong."""
    from mindspeed_mm.platforms.select import select

    platform = select(device, "off")
    platform.prepare()
    import torch
    import torch.distributed as dist

    place = platform.device(rank)
    timeout = datetime.timedelta(seconds=_TIMEOUT_S)
    meeting = f"tcp://127.0.0.1:{port}"
    dist.init_process_group(platform.backend, init_method=meeting, rank=rank, world_size=_RANKS, timeout=timeout)
    tensor = torch.full((1024,), float(rank + 1), device=place)
    dist.all_reduce(tensor)
    if not bool((tensor == sum(range(1, _RANKS + 1))).all()):
        raise RuntimeError(f"the sum is {tensor[0].item()}")
    dist.destroy_process_group()


if __name__ == "__main__":
    reach(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
