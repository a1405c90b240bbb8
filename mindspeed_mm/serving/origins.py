"""Tells requests by foreign web pages, which a visitor's browser makes in his name, from all others."""

from urllib.parse import urlsplit


def comes_from_here(headers: dict[bytes, bytes]) -> bool:
    """False for a request by another page: browsers state the origin, other programs do not."""
    host = headers.get(b"host", b"").decode("latin-1").lower()
    origin = headers.get(b"origin")
    if origin is not None:
        try:
            parts = urlsplit(origin.decode("latin-1").lower())
        except ValueError:
            return False
        if parts.scheme not in ("http", "https") or parts.netloc != host:
            return False
    site, mode = headers.get(b"sec-fetch-site", b"none"), headers.get(b"sec-fetch-mode", b"")
    # Following a link to the page is not a request by the other page.
    return site in (b"none", b"same-origin") or mode == b"navigate"
