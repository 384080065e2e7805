"""What can go wrong between a client and a server, besides what servers say."""

import re
from typing import Final

from headrace.core import Code, DeadlineExceededError, HeadraceError, UnauthenticatedError

# The words of OpenSSL and BoringSSL, which httpx and grpcio pass on.
_UNTRUSTED: Final = re.compile(
    "CERTIFICATE_VERIFY_FAILED|Hostname Verification Check failed|Peer name .* is not in peer"
)
_REFUSED: Final = re.compile(
    "ALERT_(CERTIFICATE_REQUIRED|UNKNOWN_CA|CERTIFICATE_EXPIRED|BAD_CERTIFICATE|CERTIFICATE_UNKNOWN)"
)


class ConnectionLostError(HeadraceError):
    """The connection broke after the request was sent: it may or may not have run.

    Not tried again by the client. A model's run changes nothing, so the caller may.
    """

    code = Code.UNKNOWN


class ProtocolError(HeadraceError):
    """The server's answer is not what the protocol says; it is likely another kind of server."""

    code = Code.INTERNAL


class UntrustedServerError(HeadraceError):
    """The server's certificate is not signed by whom we trust, is out of date, or is another's.

    Nothing was sent. Tried again it would be the same.
    """

    code = Code.FAILED_PRECONDITION


def tls_failure(text: str) -> HeadraceError | None:
    """What a failed handshake means to the caller, by what a library says of it; None if nothing.

    Neither is worth another try.
    """
    if _UNTRUSTED.search(text):
        return UntrustedServerError(f"the server is not trusted: {text}")
    if _REFUSED.search(text):
        msg = f"the server refused our client certificate, or asks for one: {text}"
        return UnauthenticatedError(msg)
    return None


def too_late(timeout_s: float | None) -> DeadlineExceededError:
    """The error for a server that has not answered within `timeout_s`."""
    within = "in time" if timeout_s is None else f"within {timeout_s:.3g} s"
    return DeadlineExceededError(f"the server did not answer {within}")
