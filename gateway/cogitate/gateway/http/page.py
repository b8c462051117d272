"""The page: files read once, served to everybody; what they show still needs a key.

A file is one of these names or it is nothing: no path of a request is ever looked for on a disk.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

_KINDS: Final = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
    "webp": "image/webp",
}
# Nothing from elsewhere, nothing inline; pictures are blobs that the page's own scripts fetched.
_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_HEADERS: Final = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    # Asked for each time and mostly not sent again: a new version shows at once.
    "cache-control": "no-cache",
}


@dataclass(frozen=True)
class File:
    """A file as it is sent."""

    body: bytes
    kind: str
    tag: str


class Page:
    """Answers GET and HEAD of `paths`."""

    def __init__(self) -> None:
        self._files = {
            "/" if path.name == "index.html" else f"/page/{path.name}": _file(
                path.name, path.read_bytes()
            )
            for path in (resources.files("cogitate.gateway") / "page").iterdir()
            if path.name.rpartition(".")[2] in _KINDS
        }

    @property
    def paths(self) -> frozenset[str]:
        """Where the files are."""
        return frozenset(self._files)

    async def page(self, request: Request) -> Response:
        """Sends a file, or that it is the one the browser has."""
        file = self._files[request.scope["path"]]
        headers = _HEADERS | {"etag": file.tag}
        if file.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(file.body, headers=headers | {"content-type": file.kind})


def _file(name: str, body: bytes) -> File:
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    return File(body, _KINDS[name.rpartition(".")[2]], tag)
