"""Token file by which a replica on another host authenticates the control plane.

Both read the file. Not needed on one machine, where the control plane uses a private Unix socket.
"""

import hmac
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

VARIABLE: Final = "HEADRACE_INTERNAL_TOKEN_FILE"
"""Variable with the path of the file, which is read each time, so that a token can be replaced."""
MIN_BYTES: Final = 16


def internal_token(environment: Mapping[str, str] = os.environ) -> bytes:
    """Return the token; empty without a file, or if the content is too weak. Reads a file."""
    path = environment.get(VARIABLE)
    if not path:
        return b""
    try:
        token = Path(path).read_bytes().strip()
    except OSError:
        return b""
    is_header = token.isascii() and token.decode("ascii").isprintable()
    return token if len(token) >= MIN_BYTES and is_header else b""


def is_internal(shown: bytes | None, environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this token is the control plane's; False if no token is configured."""
    if shown is None:
        return False
    token = internal_token(environment)
    return bool(token) and hmac.compare_digest(shown.strip(), token)
