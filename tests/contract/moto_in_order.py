"""moto's server, one request after the other; run by .venv-kube's Python: PORT HOST.

moto heeds If-None-Match and If-Match, but looks first and writes later: of many requests at once
several may win, which Amazon's store rules out. A lock before it makes the two one step.
"""

import io
import sys
import threading
from collections.abc import Iterable
from typing import Any

from moto.moto_server.werkzeug_app import (  # type: ignore[import-not-found, unused-ignore]  # in .venv-kube only
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import run_simple  # type: ignore[import-not-found, unused-ignore]  # in .venv-kube only

_APP: Any = DomainDispatcherApplication(create_backend_app)
_LOCK = threading.Lock()


def in_order(environ: Any, start_response: Any) -> Iterable[bytes]:  # noqa: ANN401  # WSGI's types
    # The body comes before the lock: one slow caller must not keep the others out.
    length = int(environ.get("CONTENT_LENGTH") or 0)
    if length:
        environ["wsgi.input"] = io.BytesIO(environ["wsgi.input"].read(length))
    with _LOCK:
        return list(_APP(environ, start_response))


run_simple(
    sys.argv[2], int(sys.argv[1]), in_order, threaded=True, request_handler=MotoRequestHandler
)
