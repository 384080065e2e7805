"""Token by which a replica on another host knows the control plane: both have it in a file.

On one machine nobody needs it: there the control plane comes by a socket that is its own.
"""

import hmac
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

VARIABLE: Final = "HEADRACE_INTERNAL_TOKEN_FILE"
"""Names the file; it is read each time, so that a token can be replaced."""
LEAST_BYTES: Final = 16


def internal_token(environment: Mapping[str, str] = os.environ) -> bytes:
    """The token; empty if there is no file, or what it holds could be guessed. Reads a file."""
    path = environment.get(VARIABLE)
    if not path:
        return b""
    try:
        token = Path(path).read_bytes().strip()
    except OSError:
        return b""
    is_header = token.isascii() and token.decode("ascii").isprintable()
    return token if len(token) >= LEAST_BYTES and is_header else b""


def is_internal(shown: bytes | None, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this token is the control plane's; False if no token is configured."""
    if shown is None:
        return False
    token = internal_token(environment)
    return bool(token) and hmac.compare_digest(shown.strip(), token)
