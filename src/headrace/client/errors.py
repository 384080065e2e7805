"""What can go wrong between a client and a server, besides what servers say."""

from headrace.core import Code, DeadlineExceededError, HeadraceError


class ConnectionLostError(HeadraceError):
    """The connection broke after the request was sent: it may or may not have run.

    Not tried again by the client. A model's run changes nothing, so the caller may.
    """

    code = Code.UNKNOWN


class ProtocolError(HeadraceError):
    """The server's answer is not what the protocol says; it is likely another kind of server."""

    code = Code.INTERNAL


def too_late(timeout_s: float | None) -> DeadlineExceededError:
    """The error for a server that has not answered within `timeout_s`."""
    within = "in time" if timeout_s is None else f"within {timeout_s:.3g} s"
    return DeadlineExceededError(f"the server did not answer {within}")
