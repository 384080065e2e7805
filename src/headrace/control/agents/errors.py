"""What becomes of a publication that not every gateway took?"""

import logging
from collections.abc import Mapping

from headrace.core import HeadraceError
from headrace.gateway import GatewayUnavailableError, SnapshotRejectedError


class GatewayRefusedError(SnapshotRejectedError):
    """Gateways refused a snapshot; what each had before is in force there."""

    def __init__(self, refusals: Mapping[str, str]) -> None:
        HeadraceError.__init__(self, _refused_text(refusals))
        self.refusals = dict(refusals)
        self.reason = "; ".join(refusals.values())


class NoGatewayError(GatewayUnavailableError):
    """No gateway is connected: routes are kept for the first that comes."""


def log_level_of(error: HeadraceError) -> int:
    """How loud a failed publication is: a gateway that is still to come is nobody's error."""
    return logging.INFO if isinstance(error, NoGatewayError) else logging.ERROR


def _refused_text(refusals: Mapping[str, str]) -> str:
    told = "; ".join(f"gateway '{name}': {reason}" for name, reason in refusals.items())
    return f"refused by {told}"
