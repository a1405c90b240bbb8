"""The port of a server, and the run of its web application."""

import socket

from mindspeed_mm.errors import ConfigError

THIS_MACHINE = ("127.0.0.1", "localhost", "::1")
NAMES = ("127.0.0.1", "localhost", "[::1]")  # of this machine, as requests write them


def listen(host: str, port: int) -> socket.socket:
    """A socket on the port, opened before the weights are loaded, so that a taken port fails early."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise ConfigError(f"--host {host} --port {port}: {error.strerror or error}; is another server there?") from None
    return listener


def address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def server(app, *, log_level: str = "warning", backlog: int = 2048):
    """A server (uvicorn) of an application (ASGI); after a signal open answers have 3 s."""
    import uvicorn

    from mindspeed_mm.serving.connections import PatientProtocol

    return uvicorn.Server(
        uvicorn.Config(
            app, http=PatientProtocol, ws="none", log_level=log_level, backlog=backlog, timeout_graceful_shutdown=3
        )
    )
