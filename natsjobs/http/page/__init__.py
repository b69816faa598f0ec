"""The page at ``/``: a live view of the jobs, as files that browsers load as they stand.

Plain HTML, CSS and JavaScript modules next to this file; no build step, nothing from elsewhere. The page uses the same
endpoints as everybody and gets no rights from being served here. What guards whoever looks at hostile jobs with it:
the policy below lets nothing run or load but these files, and no text become markup (Trusted Types).
"""

from __future__ import annotations

import hashlib
from importlib import resources

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again each time, and answered with 304: an upgrade shows at once
}


class _File:
    def __init__(self, name: str, body: bytes) -> None:
        self.body = body
        self.tag = f'"{hashlib.sha256(body).hexdigest()[:20]}"'
        self.headers = {
            **_HEADERS,
            "ETag": self.tag,
            "Content-Type": f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8",
        }


class Page:
    """``/`` and ``/page/…``. Reads its files once."""

    def __init__(self) -> None:
        self._files = {
            entry.name: _File(entry.name, entry.read_bytes())
            for entry in resources.files(__name__).iterdir()
            if entry.name.rpartition(".")[2] in _TYPES
        }

    def routes(self) -> list[BaseRoute]:
        """Where it is. Inside the page every address is relative, so it works under any prefix."""
        return [
            Route("/", self.index, methods=["GET"], include_in_schema=False),
            Route("/page/{name}", self.file, methods=["GET"], include_in_schema=False),
        ]

    async def index(self, request: Request) -> Response:
        """The page itself."""
        return self._answer(request, "index.html")

    async def file(self, request: Request) -> Response:
        """What it is made of."""
        return self._answer(request, request.path_params["name"])

    def _answer(self, request: Request, name: str) -> Response:
        found = self._files.get(name)
        if found is None:
            raise HTTPException(404, "not found")
        if found.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=found.headers)
        return Response(found.body, headers=found.headers)
