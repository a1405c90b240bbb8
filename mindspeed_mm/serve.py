"""A web page and an HTTP API that sample videos: `python -m mindspeed_mm.serve --help`."""

from mindspeed_mm.cli.sampling import serve

if __name__ == "__main__":
    serve()
