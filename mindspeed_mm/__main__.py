"""`python -m mindspeed_mm`: the command `mindspeed-mm`."""

from mindspeed_mm.cli.main import main

if __name__ == "__main__":
    main()
