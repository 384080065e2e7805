"""What does a gateway serve from while nobody tells it anything? The last bundle in force."""

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.agents.messages import MAX_BUNDLE_BYTES, Bundle, decode_bundle, with_version
from headrace.core import InvalidArgumentError
from headrace.core.files import write_atomic

_LOG: Final = logging.getLogger("headrace.gateway")


@dataclass(frozen=True, slots=True)
class KeptBundle:
    """One file, of mode 0600: there are private keys in it. Its first line is the rest's digest."""

    path: Path

    def read(self) -> Bundle | None:
        """The bundle; None if there is none, or none that is whole. Blocking."""
        try:
            with self.path.open("rb") as file:
                return _decode(file.read(MAX_BUNDLE_BYTES + 1))
        except FileNotFoundError:
            return None
        except (OSError, InvalidArgumentError) as error:
            extra = {"path": str(self.path), "error": str(error)}
            _LOG.error("cannot read what was served last", extra=extra)
            return None

    def write(self, bundle: Bundle) -> None:
        """Keep this; on disk before it returns. Blocking.

        Raises:
            OSError: The disk is full; what was kept before is there still.
        """
        data = msgspec.json.encode(bundle)
        write_atomic(self.path, b"%b\n%b" % (_digest(data), data), mode=0o600)


def checked(bundle: Bundle) -> Bundle:
    """`bundle`, if its version is that of its content.

    Raises:
        InvalidArgumentError: Something was lost or changed on the way.
    """
    if with_version(bundle).version != bundle.version:
        raise InvalidArgumentError("the content is not what its version says")
    return bundle


def _decode(content: bytes) -> Bundle:
    digest, _, data = content.partition(b"\n")
    if digest != _digest(data):
        raise InvalidArgumentError("it is damaged")
    return decode_bundle(data)


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()
