"""Which routes did the gateway acknowledge last? Kept in the cluster, for the next leader.

It goes on from there: without it, a rollout that was half way would be taken as not begun.
"""

import base64
import gzip
import zlib
from collections.abc import Sequence
from typing import Final

import msgspec

from headrace.control.kubernetes.names import COMPONENT, INSTANCE, MANAGED_BY, Object, Place
from headrace.control.observed import Route
from headrace.core import FailedPreconditionError
from headrace.core.spec_access import EndpointLimitsSpec

_KEY: Final = "routes.json.gz"
_MOST_BYTES: Final = 1_000_000


def record_name(place: Place) -> str:
    """What the ConfigMap is called."""
    return f"{place.instance}-routes"


def record_of(routes: Sequence[Route], *, place: Place) -> Object:
    """The ConfigMap that holds `routes`; who may call, and how much, is no part of it.

    Raises:
        FailedPreconditionError: They are more than a ConfigMap holds.
    """
    kept = [
        msgspec.structs.replace(route, access=None, limits=EndpointLimitsSpec(), request_log=None)
        for route in routes
    ]
    packed = base64.b64encode(gzip.compress(msgspec.json.encode(kept), mtime=0)).decode()
    if len(packed) > _MOST_BYTES:
        raise FailedPreconditionError(
            f"the routes of {len(routes)} endpoints take {len(packed)} bytes, more than a "
            f"ConfigMap holds ({_MOST_BYTES}): spread them over several installations"
        )
    metadata: Object = {
        "name": record_name(place),
        "namespace": place.namespace,
        "labels": {
            "app.kubernetes.io/name": "headrace",
            INSTANCE: place.instance,
            COMPONENT: "control",
            MANAGED_BY: "headrace",
        },
    }
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "binaryData": {_KEY: packed},
    }


def routes_in(found: Object | None) -> tuple[Route, ...] | None:
    """The routes that a ConfigMap holds; None if there is none, or it cannot be read."""
    packed = ((found or {}).get("binaryData") or {}).get(_KEY)
    if packed is None:
        return None
    try:
        told = gzip.decompress(base64.b64decode(packed))
        return msgspec.json.decode(told, type=tuple[Route, ...])
    except (ValueError, OSError, EOFError, zlib.error, msgspec.MsgspecError):
        return None
