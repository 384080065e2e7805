"""Where do the models of a stored state lie on this host? State may come from another home.

A revision names its file by path. Whoever takes over the state of a home that was on another
host, or has moved, has the same content, but under another path: models, and online stores that lie
in the home. Ids have no path of a home in them, so nothing is started anew for that.
"""

import logging
import re
from pathlib import Path
from typing import Final, TypeVar

import msgspec

from headrace.control.artifact_paths import LAYOUT
from headrace.control.online_stores import SQLITE
from headrace.core import Digest, HeadraceError
from headrace.registry import Registry

_LOG: Final = logging.getLogger("headrace.control")
_ARTIFACT: Final = re.compile(rf'"((?:/(?:[^"\\]|\\.)*)?){LAYOUT}'.encode())
"""How a path into a home's artifacts begins in JSON."""

T = TypeVar("T", bound=msgspec.Struct)


def at_home(stored: T, root: Path) -> tuple[T, set[Digest]]:
    """The same with all that lies in a home under the home at `root`; which artifacts these are."""
    digests: set[Digest] = set()
    homes: set[bytes] = set()
    home = msgspec.json.encode(str(root)).strip(b'"')

    def moved(match: re.Match[bytes]) -> bytes:
        homes.add(match[1])
        digests.add(Digest(f"sha256:{match[2].decode()}"))
        return b'"%b/artifacts/sha256/%b/' % (home, match[2])

    text = msgspec.json.encode(stored)
    changed = _ARTIFACT.sub(moved, text)
    store = f'"{SQLITE}'.encode()
    for former in homes - {home, b""}:
        changed = changed.replace(store + former + b"/", store + home + b"/")
    if changed == text:
        return stored, digests
    return msgspec.json.decode(changed, type=type(stored)), digests


def bring_home(stored: T, registry: Registry) -> T:
    """The same as `at_home`, with the content fetched that only the shared store has. Blocking.

    What cannot be fetched now is told in the log: the rest is served without it.
    """
    found, digests = at_home(stored, registry.home)
    for digest in sorted(digests):
        try:
            registry.have(digest)
        except HeadraceError as error:
            _LOG.error("cannot have a model here: %s", error, extra={"digest": digest})
    return found
