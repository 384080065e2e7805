"""Which gateways' certificates are believed no more? Those in a file, read again when it changes.

By fingerprint: a gateway may have another certificate with the same name, and a serial number is
one authority's only.
"""

import asyncio
import hashlib
import logging
import re
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headrace.control.news import News
from headrace.core import FailedPreconditionError

_LOG: Final = logging.getLogger("headrace.control")
_LOOK_S: Final = 0.5
_MOST_BYTES: Final = 16 << 20
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")
_PREFIX: Final = re.compile(r"^sha-?256( fingerprint)?\s*[=:]\s*", re.IGNORECASE)
_Mark = tuple[int, ...] | None


def fingerprint_of(certificate: bytes) -> str:
    """The SHA-256 of a certificate (DER), in hexadecimal digits."""
    return hashlib.sha256(certificate).hexdigest()


def fingerprint_of_pem(certificate: bytes) -> str:
    """As `fingerprint_of`, of the first certificate in PEM."""
    return fingerprint_of(ssl.PEM_cert_to_DER_cert(certificate.decode("ascii")))


def fingerprints_in(text: str) -> frozenset[str]:
    """One in each line, as openssl prints it or without colons; `#` begins a remark.

    Raises:
        FailedPreconditionError: A line holds none; the message says which.
    """
    found = set()
    for number, line in enumerate(text.splitlines(), start=1):
        told = _PREFIX.sub("", line.partition("#")[0].strip())
        plain = told.replace(":", "").lower()
        if plain and _FINGERPRINT.fullmatch(plain) is None:
            raise FailedPreconditionError(
                f"line {number}: {told[:100]!r} is no SHA-256 fingerprint (64 hexadecimal digits, "
                "as `openssl x509 -noout -fingerprint -sha256 -in FILE` prints them)"
            )
        if plain:
            found.add(plain)
    return frozenset(found)


@dataclass(slots=True, kw_only=True)
class RevokedAgents:
    """The fingerprints in `path`; None for none ever. What cannot be read changes nothing."""

    path: Path | None = None
    fingerprints: frozenset[str] = frozenset()
    problem: str = ""
    _news: News = field(default_factory=News)
    _mark: _Mark = None

    def open(self) -> None:
        """Read the file. Blocking; before anybody is answered.

        Raises:
            FailedPreconditionError: It cannot be read: whoever names one wants it to count.
        """
        if self.path is not None:
            self._mark = _mark_of(self.path)
            self.fingerprints = _read(self.path)

    def has(self, fingerprint: str) -> bool:
        """Whether a certificate is believed no more."""
        return fingerprint in self.fingerprints

    async def wait_for(self, fingerprint: str) -> None:
        """Return when that certificate is believed no more."""
        while not self.has(fingerprint):
            await self._news.next.wait()

    async def run(self) -> None:
        """Look at the file until cancelled."""
        while self.path is not None:
            await asyncio.sleep(_LOOK_S)
            found = await asyncio.to_thread(self.look)
            if found is not None:
                self.take(found)

    def look(self) -> frozenset[str] | None:
        """What the file says, if it is another one than at the last look. Blocking."""
        assert self.path is not None, "there is something to look at"
        mark = _mark_of(self.path)
        if mark == self._mark:
            return None
        try:
            found = _read(self.path)
        except FailedPreconditionError as error:
            if str(error) != self.problem:  # it is read again each time: it may only lack a right
                self.problem = str(error)
                _LOG.error("%s; those that were revoked stay so", error)
            return None
        self._mark, self.problem = mark, ""
        return found

    def take(self, fingerprints: frozenset[str]) -> None:
        """Believe no certificate of these any more, and whoever waits with one is told."""
        extra = {"revoked": len(fingerprints)}
        _LOG.info("the list of revoked gateways is another", extra=extra)
        self.fingerprints = fingerprints
        self._news.note()


def _read(path: Path) -> frozenset[str]:
    what = f"the list of revoked gateways {path}"
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise FailedPreconditionError(f"cannot read {what}: {error.strerror}") from None
    if len(data) > _MOST_BYTES:
        raise FailedPreconditionError(f"{what} has more than {_MOST_BYTES} bytes")
    try:
        return fingerprints_in(data.decode("utf-8", "replace"))
    except FailedPreconditionError as error:
        raise FailedPreconditionError(f"{what}, {error}") from None


def _mark_of(path: Path) -> _Mark:
    """By which another content is known, also of what a symbolic link leads to."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns
