"""Refusals of the API, in the form of OpenAI's errors."""

from typing import Any


class Refusal(Exception):
    """A request is refused. param: the field at fault. retry_s: when to try again. code: for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry_s: int | None = None,
    ):
        super().__init__(message)
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.retry_s = retry_s

    @property
    def body(self) -> dict[str, Any]:
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status)
        kind = kind or ("invalid_request_error" if self.status < 500 else "server_error")
        return {
            "error": {"message": _plain(self.message), "type": kind, "param": _plain(self.param), "code": self.code}
        }

    @property
    def headers(self) -> dict[str, str]:
        found = {} if self.retry_s is None else {"Retry-After": str(self.retry_s)}
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        if self.status in (404, 409):  # OpenAI's client would try a 409 again
            found["x-should-retry"] = "false"
        return found


def _plain(text: str | None) -> str | None:
    """A text that an answer can hold: half of a character, which JSON may send, becomes its escape."""
    return None if text is None else text.encode("utf-8", "backslashreplace").decode()
