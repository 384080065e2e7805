"""Documents and pages by which a server describes itself over HTTP. Imports no sibling.

`/`, `/docs` and `/openapi.json` are the same on a replica and on the gateway, which answers them
itself. Swagger UI 5.35.0 (Apache-2.0) is the unchanged npm package `swagger-ui-dist`, compressed.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Final

import orjson

from headrace.protocol.metadata import SERVER_NAME
from headrace.protocol.openapi import server_openapi

HTML: Final = "text/html; charset=utf-8"
JSON: Final = "application/json"
_NAME: Final = "NAME"
_FOLDER: Final = Path(str(files("headrace.protocol") / "pages"))
_CSP: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
_MARK: Final = "@NAMES@"


@dataclass(frozen=True, slots=True, kw_only=True)
class StaticPage:
    """File that a server returns to browsers."""

    path: str
    """Path of its URL."""
    file: Path
    """Content, compressed if `headers` say so."""
    headers: tuple[tuple[str, str], ...]
    """Response headers, in lower case; the first is the content type."""


def _page(path: str, file: str, content_type: str) -> StaticPage:
    compressed = (("content-encoding", "gzip"),) if file.endswith(".gz") else ()
    return StaticPage(
        path=path,
        file=_FOLDER / file,
        headers=(
            ("content-type", content_type),
            *compressed,
            ("cache-control", "max-age=3600"),
            ("content-security-policy", _CSP),
            ("x-content-type-options", "nosniff"),
        ),
    )


DOCS_PAGE: Final = _page("/docs", "docs.html", HTML)
"""Swagger UI; on `/v2/models/NAME/docs` it shows that model's API."""
PAGES: Final = (
    DOCS_PAGE,
    _page("/docs/docs.css", "docs.css", "text/css; charset=utf-8"),
    _page("/docs/docs.js", "docs.js", "text/javascript; charset=utf-8"),
    _page("/docs/swagger-ui.css", "swagger-ui.css.gz", "text/css; charset=utf-8"),
    _page(
        "/docs/swagger-ui-bundle.js", "swagger-ui-bundle.js.gz", "text/javascript; charset=utf-8"
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ListTemplate:
    """Response with the names of the endpoints that the caller may use, in four parts.

    The gateway's script fills it in for each caller.
    """

    head: str
    item: str
    """One endpoint, with `placeholder` for its name, which needs no escape anywhere."""
    separator: str
    tail: str
    content_type: str
    placeholder: str = _NAME
    middle: str = ""
    """Text between the list of all endpoints and that of those with OpenAI's API."""
    openai_item: str = ""
    """One endpoint of the second list; empty for no such list."""

    def render(self, names: Iterable[str], openai: Iterable[str] = ()) -> str:
        """Return the response for a caller who may use `names`, of which `openai` have that API."""
        items = self.separator.join(self.item.replace(self.placeholder, name) for name in names)
        more = self.separator.join(self.openai_item.replace(self.placeholder, n) for n in openai)
        return f"{self.head}{items}{self.middle}{more}{self.tail}"


def _json_template(document: object) -> ListTemplate:
    """Return `document` as a template; it has a list of `_MARK` alone."""
    head, _, tail = orjson.dumps(document).decode().partition(f'"{_MARK}"')
    return ListTemplate(head=head, item=f'"{_NAME}"', separator=",", tail=tail, content_type=JSON)


def names_template() -> ListTemplate:
    """Return `GET /v2/models` and `GET /v1/models`, KServe's list of names."""
    return _json_template({"models": [_MARK]})


def openai_model(name: str) -> dict[str, str | int]:
    """Return an endpoint as OpenAI's API describes a model."""
    return {"id": name, "object": "model", "created": 0, "owned_by": SERVER_NAME}


def openai_names_template() -> ListTemplate:
    """Return `GET /v1/models`: KServe's list of names, and OpenAI's of models, in one document."""
    names = names_template()
    return replace(
        names,
        middle='],"object":"list","data":[',
        openai_item=orjson.dumps(openai_model(_NAME)).decode(),
    )


def root_template(*, version: str = "") -> ListTemplate:
    """Return `GET /` for programs: KServe's V1 liveness, the endpoints, and where to go on.

    Args:
        version: The server's version; empty to leave it out.
    """
    return _json_template(
        {
            "status": "alive",
            "name": SERVER_NAME,
            **({"version": version} if version else {}),
            "endpoints": [_MARK],
            "links": {
                "docs": "/docs",
                "openapi": "/openapi.json",
                "server": "/v2",
                "models": "/v2/models",
                "infer": "/v2/models/{name}/infer",
                "invocations": "/endpoints/{name}/invocations",
                "model_openapi": "/v2/models/{name}/openapi.json",
                "ready": "/v2/health/ready",
            },
        }
    )


def root_page() -> ListTemplate:
    """Return `GET /` for browsers."""
    head, _, tail = (_FOLDER / "root.html").read_text(encoding="utf-8").partition(_MARK)
    item = f'<li><a href="/docs#{_NAME}">{_NAME}</a></li>'
    return ListTemplate(head=head, item=item, separator="\n", tail=tail, content_type=HTML)


def openapi_template() -> ListTemplate:
    """Return `GET /openapi.json` of a server with several endpoints."""
    return _json_template(server_openapi([_MARK]))


_INFER: Final = (
    "POST /v2/models/NAME/infer, POST /v1/models/NAME:predict or POST /endpoints/NAME/invocations"
)
_NOT_HERE: Final = "Not Found"
_UNKNOWN: Final = (
    (r"/(v2/)?models?(/.*)?", "/v2/models or /v2/models/NAME"),
    (
        r"/(v2/)?(health|healthz|live|livez|ready|readyz)(/.*)?",
        "/v2/health/live or /v2/health/ready",
    ),
    (
        r"/(.*[/:])?(infer|predict|predictions|score|invoke|invocations|run|generate|classify)(/.*)?",
        _INFER,
    ),
    (r"/(swagger|redoc|api-docs|openapi|schema)[^/]*(/.*)?", "/docs or /openapi.json"),
    (
        r"/(metrics|stats)(/.*)?",
        "/v2/models/stats, or /metrics on the metrics port (8002 by default)",
    ),
    (
        r"/(api|auth|console|admin|login|ui)(/.*)?",
        "the console and the management API, which are on the management port (8080 by default)",
    ),
    (
        r"/(v1/|openai/)*(chat|completions?|embeddings?|rerank)(/.*)?",
        (
            "POST /v1/chat/completions, /v1/completions, /v1/embeddings or /v1/rerank, which a "
            "server with a language model or an encoder has (`headrace serve`: on --openai-port)"
        ),
    ),
    (r"/v2(/.*)?", "/v2, /v2/models, /v2/health/ready or /v2/models/NAME/infer"),
    (r"/v1(/.*)?", "/v1/models or POST /v1/models/NAME:predict"),
)
NOT_FOUND: Final = f"{_NOT_HERE}: GET / lists what this server has"
"""Error for a path that resembles no path of the server."""
NOT_FOUND_NEAR: Final = tuple(
    (pattern, f"{_NOT_HERE}: did you mean {near}? GET / lists what this server has")
    for pattern, near in _UNKNOWN
)
"""Patterns (RE2) of other paths, and the error for a path that matches one as a whole."""
_NEAR: Final = tuple((re.compile(pattern), text) for pattern, text in NOT_FOUND_NEAR)
MODEL_PATHS: Final = (
    f"{_NOT_HERE}: a model has /infer, /ready, /config, /stats, /docs, /openapi.json"
)
"""Error for an unknown path below a model's."""
_LONGEST: Final = 200


def not_found_text(path: str) -> str:
    """Return the error for an unknown path, with the paths that the caller may mean."""
    shown = path[:_LONGEST]
    return next((text for pattern, text in _NEAR if pattern.fullmatch(shown)), NOT_FOUND)
