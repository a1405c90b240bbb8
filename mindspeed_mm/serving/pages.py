"""The web page: three files of this package, which use the API as any other program does."""

from pathlib import Path

import fastapi
from fastapi.responses import FileResponse, Response

_FOLDER = Path(__file__).parent / "page"
_FILES = {"/": "page.html", "/page.js": "page.js", "/page.css": "page.css"}
# The page takes nothing from elsewhere, runs no script but its own, and stands in no frame of another page.
_RULES = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _RULES,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",  # a browser asks whether its copy is still right
}


def routes() -> fastapi.APIRouter:
    """The page at /. It asks for no token: it holds nothing that is anyone's."""
    router = fastapi.APIRouter()
    for path, name in _FILES.items():
        router.add_api_route(path, _sender(_FOLDER / name), methods=["GET", "HEAD"])
    return router


def _sender(file: Path):
    def send() -> Response:
        return FileResponse(file, headers=_HEADERS)

    return send
