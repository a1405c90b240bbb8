"""Train Open-Sora Plan v1.5: `torchrun --nproc_per_node N pretrain_opensoraplan.py --help`."""

from mindspeed_mm.cli.training import train

if __name__ == "__main__":
    train()
