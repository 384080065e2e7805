"""Self-description of a replica: `/`, `/docs` and the OpenAPI documents of its models."""

from collections.abc import Iterable
from functools import partial
from typing import Final

from headrace import __version__
from headrace.core import Tensors
from headrace.core.examples import example_inputs
from headrace.protocol import encode_document
from headrace.protocol.openapi import model_openapi
from headrace.protocol.pages import (
    DOCS_PAGE,
    PAGES,
    ListTemplate,
    StaticPage,
    openapi_template,
    root_page,
    root_template,
)
from headrace.runtimes import generated_inputs
from headrace.serving.exchange import Exchange
from headrace.serving.routing import Handler
from headrace.serving.state import ReplicaState

OPENAPI: Final = b"/openapi.json"
_ACCEPT: Final = b"accept"


def send_page(page: StaticPage, exchange: Exchange) -> None:
    """Send a static file."""
    (_, content_type), *others = page.headers
    headers = {name.encode(): value.encode() for name, value in others}
    exchange.send(200, page.file.read_bytes(), content_type=content_type.encode(), headers=headers)


def send_root(names: Iterable[str], exchange: Exchange) -> None:
    """GET /, as a page for browsers and as JSON for others."""
    is_browser = b"text/html" in exchange.headers.get(_ACCEPT, b"")
    _send_list(root_page() if is_browser else root_template(version=__version__), names, exchange)


def send_openapi(names: Iterable[str], exchange: Exchange) -> None:
    """GET /openapi.json of several models."""
    _send_list(openapi_template(), names, exchange)


def _send_list(template: ListTemplate, names: Iterable[str], exchange: Exchange) -> None:
    body = template.render(sorted(names)).encode()
    exchange.send(200, body, content_type=template.content_type.encode())


def page_handlers() -> dict[tuple[bytes, bytes], Handler]:
    """Return the handlers of the static files by method and path."""
    return {(b"GET", page.path.encode()): partial(send_page, page) for page in PAGES}


class ModelPages:
    """Handlers of the pages about one model, and about a process with this model only."""

    def __init__(self, state: ReplicaState) -> None:
        self._state = state

    def model_handlers(self) -> dict[tuple[bytes, bytes], Handler]:
        """Return the handlers by method and by what follows the model in the path."""
        return {
            (b"GET", OPENAPI): partial(self._openapi, server=False),
            (b"GET", b"/docs"): partial(send_page, DOCS_PAGE),
        }

    def handlers(self) -> dict[tuple[bytes, bytes], Handler]:
        """Return the handlers by method and path."""
        return {
            (b"GET", b"/"): partial(send_root, (self._state.name,)),
            (b"GET", OPENAPI): partial(self._openapi, server=True),
            **page_handlers(),
        }

    def _openapi(self, exchange: Exchange, *, server: bool) -> None:
        state = self._state
        document = model_openapi(
            state.name,
            state.version,
            state.description.signature,
            example=self._example(),
            server=server,
        )
        exchange.send_json(encode_document(document))

    def _example(self) -> Tensors:
        """Return inputs that the model accepts: its own examples while it is loaded."""
        served = self._state.served
        if served is None:
            return example_inputs(self._state.description.signature)
        return generated_inputs(served.loaded.model)
