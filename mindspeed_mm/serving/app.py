"""The API's routes (ASGI). What they do is in `desk.py`."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import fastapi
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect

from mindspeed_mm import logs
from mindspeed_mm.serving import pages
from mindspeed_mm.serving.desk import Desk
from mindspeed_mm.serving.faults import Refusal
from mindspeed_mm.serving.fields import IMAGES
from mindspeed_mm.serving.keys import Key, Keys
from mindspeed_mm.serving.origins import comes_from_here

_log = logs.get(__name__)
_MAX_FIELDS = 32
_BODY_S = 60.0  # longest time for a request's body to arrive
_DISK_RETRY_S = 30
_SAID_EVERY_S = 60.0  # between two lines of the log about the disk
_LEFT = 499  # status, in the figures alone, of a client that left before its request was complete


def build_app(
    desk: Desk, keys: Keys, max_body: int, hosts: Sequence[str] = (), *, has_page: bool = True
) -> fastapi.FastAPI:
    """max_body: bytes of a request, with its images. hosts: names that a request may call this server by; none: any.

    has_page: the page is at /.
    """
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.include_router(_videos(desk, keys, max_body))
    app.include_router(_service(desk, keys))
    if has_page:
        app.include_router(pages.routes())
    app.add_exception_handler(Refusal, _refused)
    app.add_exception_handler(HTTPException, _of_http)
    app.add_exception_handler(fastapi.exceptions.RequestValidationError, _of_validation)
    app.add_exception_handler(OSError, _DiskFault())
    if not keys.are_asked:
        app.add_middleware(_FromHere)
    if hosts:  # blocks a foreign page that reaches this server by its own name (DNS rebinding)
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))
    app.add_middleware(Counted, desk=desk)
    return app


def _videos(desk: Desk, keys: Keys, max_body: int) -> fastapi.APIRouter:
    router = fastapi.APIRouter(prefix="/v1/videos")

    def who(request: fastapi.Request) -> Key:
        return _key(keys, request)

    @router.post("")
    async def create(request: fastapi.Request) -> dict[str, Any]:
        key = who(request)
        values, files = await _fields(request, max_body)
        repeat_key = request.headers.get("idempotency-key")
        return await run_in_threadpool(desk.create, key, values, files, repeat_key)

    @router.get("")
    def list_(request: fastapi.Request, limit: int = 20, after: str | None = None, order: str = "desc"):
        return desk.list(who(request), limit, after, order)

    @router.get("/{id}")
    def get(request: fastapi.Request, id: str) -> dict[str, Any]:
        return desk.get(who(request), id)

    @router.delete("/{id}")
    def delete(request: fastapi.Request, id: str) -> dict[str, Any]:
        return desk.delete(who(request), id)

    @router.post("/{id}/cancel")
    def cancel(request: fastapi.Request, id: str) -> dict[str, Any]:
        return desk.cancel(who(request), id)

    @router.get("/{id}/content")
    def content(request: fastapi.Request, id: str, variant: str = "video") -> Response:
        found = desk.content(who(request), id, variant)
        if isinstance(found, bytes):
            return Response(found, media_type="image/jpeg", headers={"Cache-Control": "no-store"})
        return FileResponse(found)

    return router


def _service(desk: Desk, keys: Keys) -> fastapi.APIRouter:
    router = fastapi.APIRouter()

    @router.get("/v1/models")
    def models(request: fastapi.Request) -> dict[str, Any]:
        _key(keys, request)
        return desk.models()

    @router.get("/v1/models/{name:path}")
    def model(request: fastapi.Request, name: str) -> dict[str, Any]:
        _key(keys, request)
        if name != desk.model_name:
            raise Refusal(404, f"this server has the model {desk.model_name!r} alone", code="model_not_found")
        return desk.models()["data"][0]

    @router.get("/health")
    def health() -> Response:
        is_up, state = desk.health()
        return JSONResponse(state, 200 if is_up else 503)

    @router.get("/metrics")
    def metrics() -> Response:
        text = desk.metrics.text(desk.queue.counts(), desk.health()[0])
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return router


def _key(keys: Keys, request: fastapi.Request) -> Key:
    key = keys.of(request.headers.get("authorization"))
    if key is None:
        raise Refusal(401, "send a token that this server knows: Authorization: Bearer TOKEN", code="invalid_api_key")
    return key


async def _fields(request: fastapi.Request, max_body: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Fields of a request's body, JSON or a form, and the bytes of its files."""
    too_large = Refusal(413, f"the request is larger than {max_body} bytes", code="request_too_large")
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or int(length[:20]) > max_body:
        raise too_large
    limited = fastapi.Request({**request.scope}, _limited(request.receive, max_body, too_large))
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        async with asyncio.timeout(_BODY_S):
            if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
                return await _form(limited, max_body)
            if kind not in ("application/json", ""):
                raise Refusal(415, "send application/json or multipart/form-data", code="unsupported_media_type")
            body = await limited.body()
    except TimeoutError:
        raise Refusal(408, f"the request did not arrive within {_BODY_S:.0f} s", code="request_timeout") from None
    return _object(body), {}


def _object(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise Refusal(400, f"the body is no JSON: {error}", code="invalid_json") from None
    if not isinstance(values, dict):
        raise Refusal(400, "the body must be a JSON object", code="invalid_json")
    return values


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON; of two equal keys the plain reader would drop one silently."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is given twice")
    return found


async def _form(request: fastapi.Request, max_body: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    values: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    async with request.form(max_files=len(IMAGES), max_fields=_MAX_FIELDS, max_part_size=max_body) as form:
        for name, value in form.multi_items():
            if name in values or name in files:
                raise Refusal(400, f"{name[:60]!r}: is given twice", code="repeated_parameter", param=name[:60])
            if not isinstance(value, UploadFile):
                values[name] = value
            elif name in IMAGES:
                files[name] = await value.read()
            else:
                raise Refusal(
                    400, f"unknown fields: {name[:60]!r} as a file", code="unknown_parameter", param=name[:60]
                )
    return values, files


def _limited(receive: Callable[[], Awaitable[Any]], most: int, too_large: Refusal) -> Callable[[], Awaitable[Any]]:
    """A `receive` that raises when more than `most` bytes have come."""
    came = 0

    async def counted() -> Any:
        nonlocal came
        message = await receive()
        came += len(message.get("body", b""))
        if came > most:
            raise too_large
        return message

    return counted


async def _refused(request: fastapi.Request, error: Any) -> Response:
    return JSONResponse(error.body, error.status, headers=error.headers)


async def _of_http(request: fastapi.Request, error: Any) -> Response:
    """404 and 405 of the router, 400 of a form that is damaged."""
    return await _refused(request, Refusal(error.status_code, str(error.detail)))


async def _of_validation(request: fastapi.Request, error: Any) -> Response:
    first = error.errors()[0]
    name = str(first["loc"][-1])
    return await _refused(request, Refusal(422, f"{name}: {first['msg']}", code="invalid_value", param=name))


class _DiskFault:
    """Answers a request that could not be written down: nothing has changed, and it was not accepted."""

    def __init__(self):
        self.said_s = -_SAID_EVERY_S

    async def __call__(self, request: fastapi.Request, error: Any) -> Response:
        if time.monotonic() - self.said_s >= _SAID_EVERY_S:  # clients try again and again
            self.said_s = time.monotonic()
            _log.error(f"{request.method} {request.url.path}: {error}")
        reason = "the server's disk cannot be written now; nothing was accepted, try again later"
        return await _refused(request, Refusal(503, reason, code="disk", retry_s=_DISK_RETRY_S))


class _FromHere:
    """ASGI middleware: without tokens, any page that a visitor looks at could let his browser use this server."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http" and not comes_from_here({name.lower(): value for name, value in scope["headers"]}):
            body = Refusal(403, "this server is not for other pages; with --api-keys it asks for a token instead").body
            return await JSONResponse(body, 403)(scope, receive, send)
        await self.app(scope, receive, send)


class Counted:
    """ASGI middleware: counts answers, and answers a fault of this program in the form of the API's errors."""

    def __init__(self, app, desk: Desk):
        self.app = app
        self.metrics = desk.metrics

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        status = 0

        async def sent(message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, sent)
        except ClientDisconnect:
            status = _LEFT
        except Exception as error:
            _log.exception(f"{scope['method']} {scope['path']}: {type(error).__name__}")
            if status == 0:
                body = Refusal(500, "an error of the server; its log says more").body
                await JSONResponse(body, 500)(scope, receive, sent)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in ("GET", "POST", "DELETE", "HEAD") else "other"
            self.metrics.request(method, route, status)
