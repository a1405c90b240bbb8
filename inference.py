"""Sample videos with Open-Sora Plan v1.5: `python inference.py --help`."""

from mindspeed_mm.cli.sampling import sample

if __name__ == "__main__":
    sample()
