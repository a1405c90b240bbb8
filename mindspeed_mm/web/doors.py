"""Decides which requests reach Gradio: small ones that the page itself makes. All others end here.

Gradio has some fifty routes; some store uploads, fetch any address, edit the page's code or run ffmpeg, and new
versions may add more. So the open routes are listed, not the closed ones.
"""

import json
import re

from mindspeed_mm.serving.origins import comes_from_here

_FILE = r"[A-Za-z0-9_@~+.-]+"
OPEN = {
    "GET": (
        r"/",
        r"/samples/[A-Za-z0-9_]+\.(mp4|png|json)",
        r"/config/?",
        r"/theme\.css",
        r"/favicon\.ico",
        r"/manifest\.json",
        rf"/(assets|static|svelte)/({_FILE}/)*{_FILE}",
        r"/gradio_api/(info|app_id|startup-events|theme\.css|queue/data)",
        r"/gradio_api/heartbeat/[A-Za-z0-9_-]+",
    ),
    "HEAD": (r"/", r"/samples/[A-Za-z0-9_]+\.(mp4|png|json)"),
    "POST": (r"/gradio_api/(queue/join|run/predict|cancel|reset)",),
}
MAX_BODY = 2**16  # bytes; the form's texts are at most 2 x 4000 characters
_MAX_TARGET = 2**12  # bytes of path and query


def is_open(method: str, path: str) -> bool:
    """True if a request may pass."""
    if ".." in path.split("/"):
        return False
    return any(re.fullmatch(pattern, path) for pattern in OPEN.get(method, ()))


class Doors:
    """ASGI middleware. Unlisted routes do not exist (404), and requests from other pages are refused (403)."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":  # the page has no web sockets
            await receive()
            return await send({"type": "websocket.close", "code": 1008})
        headers = {name.lower(): value for name, value in scope["headers"]}
        target = len(scope["path"]) + len(scope.get("query_string", b""))
        if not is_open(scope["method"], scope["path"]) or target > _MAX_TARGET:
            return await _answer(404, "Not Found", send)
        if not comes_from_here(headers):
            return await _answer(403, "this page is not for other pages", send)
        if scope["method"] == "POST":
            body = await _body(headers, receive)
            if isinstance(body, int):
                return await _answer(body, "needs a small JSON object", send)
            receive = _again(body, receive)
        return await self.app(scope, receive, send)


async def _body(headers: dict[bytes, bytes], receive) -> bytes | int:
    """Body of a POST; or the status of its refusal if it is large, incomplete, or not a JSON object of plain values."""
    found = b""
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return 400
        found += message.get("body", b"")
        if len(found) > MAX_BODY:
            return 413
        if not message.get("more_body"):
            break
    try:
        value = json.loads(found)
    except (ValueError, RecursionError):
        return 400
    return found if _is_plain(value) else 400


def _is_plain(value: object) -> bool:
    """True if a body has the page's form: an object whose `data` are texts, numbers and empty fields."""
    if not isinstance(value, dict):
        return False
    data = value.get("data", [])
    if not isinstance(data, list) or not all(isinstance(item, (str, int, float, type(None))) for item in data):
        return False
    return "\\ud" not in json.dumps(value)  # a lone surrogate cannot be part of an answer


def _again(body: bytes, receive):
    """A `receive` that returns the body already read, then later events, such as the visitor leaving."""
    given = False

    async def once():
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


async def _answer(status: int, text: str, send) -> None:
    body = text.encode()
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
