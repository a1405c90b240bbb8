"""The routes of a web application, those of mounted applications and included routers as well."""

import re


def routes_of(routes, prefix: str = "") -> set[tuple[str, str]]:
    """(method, path pattern) of all routes of an application (`app.routes`)."""
    found = set()
    for route in routes:
        path = getattr(route, "path", "")
        if hasattr(route, "effective_candidates"):  # an included router; its routes know their whole path
            found |= routes_of(route.effective_candidates(), prefix)
            continue
        methods = getattr(route, "methods", None)
        if methods is not None:
            found |= {(method, prefix + path) for method in methods}
        below = getattr(getattr(route, "app", None), "routes", None)
        if below is not None and methods is None:
            found |= routes_of(below, prefix + path)
    return found


def filled(pattern: str) -> str:
    """A path that a pattern matches."""
    return re.sub(r"\{[^}]*\}", "x", pattern) or "/"
