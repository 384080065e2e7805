"""When was a certificate replaced, and is the new one fit for use? What was good stays until then.

Files are known by their inode, size and times behind any symbolic link, so a rename, a write in
place and the swapped directory of a Kubernetes secret are all seen.
"""

import ssl
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.core import FailedPreconditionError
from headrace.core.files import read_regular
from headrace.gateway.pem import (
    Certificate,
    CertificateRefusedError,
    KeyRefusedError,
    certificates_alone,
    check_authorities,
    check_pair,
)

_SETTLE_S: Final = 1.0
"""Certificate and key are two files: one may be replaced a moment before the other."""
_LARGEST_BYTES: Final = 4 << 20
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
_Mark = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PemFiles:
    """Files that belong together: a certificate and its key, or authorities if there is no key.

    `name` tells them from others. `what` says to people what they are for. `is_server`: whether a
    server shows the certificate.
    """

    name: str
    what: str
    certificate_file: Path
    key_file: Path | None = None
    is_server: bool = True

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files."""
        return (self.certificate_file, *((self.key_file,) if self.key_file else ()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Pem:
    """What the files hold, and what it says; of authorities, what the one says that ends first."""

    certificates: bytes
    key: bytes | None
    facts: Certificate


def read_pem(files: PemFiles, *, now: float) -> Pem:
    """What the files hold, checked. Blocking.

    Raises:
        FailedPreconditionError: It cannot be used; the message names the file.
    """
    certificates = _read(files.certificate_file, files.what, CertificateRefusedError)
    key = None
    if files.key_file is not None:
        key = _read(files.key_file, f"the key of {files.what}", KeyRefusedError)
        _check_private(files.key_file)
    try:
        if key is None:
            valid = [one for one in check_authorities(certificates, now=now) if one.not_after > now]
            facts = min(valid, key=lambda one: one.not_after)
        else:
            facts = check_pair(certificates, key, now=now, server=files.is_server)
        # A file may hold the key besides: it must not go where certificates go.
        certificates = certificates_alone(certificates)
    except CertificateRefusedError as error:
        raise type(error)(f"{files.what} {files.certificate_file}: {error}") from None
    return Pem(certificates=certificates, key=key, facts=facts)


def tls_context(protocol: int) -> ssl.SSLContext:
    """The context of connections of the control plane and its agents: TLS 1.2 and later."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    return context


def show_certificate(context: ssl.SSLContext, pem: Pem, directory: Path) -> None:
    """Let a context show a certificate that was checked with its key.

    Args:
        directory: Of this user only; `ssl` reads files, so the key is in one for a moment.
    """
    with tempfile.NamedTemporaryFile(dir=directory) as file:  # mode 0600
        file.write(pem.certificates + b"\n" + (pem.key or b""))
        file.flush()
        context.load_cert_chain(file.name)


@dataclass(slots=True, kw_only=True)
class PemWatch:
    """Looks at files now and then; the caller brings the time, in seconds since 1970."""

    files: PemFiles
    pem: Pem | None = None
    problem: str = ""
    """Why what the files hold now is not in force; empty if it is."""
    _mark: _Mark | None = None
    _since: float = 0.0
    _is_told: bool = False

    def is_due(self) -> bool:
        """Whether there is something to look at, or to complain of. Blocking."""
        return (bool(self.problem) and not self._is_told) or _mark_of(
            self.files.paths
        ) != self._mark

    def look(self, now: float) -> Pem | None:
        """What the files hold, if that is new and can be used. Blocking."""
        mark = _mark_of(self.files.paths)
        if mark == self._mark:
            return None
        self._mark = mark
        try:
            found = read_pem(self.files, now=now)
        except FailedPreconditionError as error:
            self.refuse(str(error), now)
            return None
        self.problem = ""
        is_new = self.pem is None or (found.certificates, found.key) != (
            self.pem.certificates,
            self.pem.key,
        )
        return found if is_new else None

    def take(self, pem: Pem) -> None:
        """Remember that this is in force."""
        self.pem = pem
        self.problem = ""

    def refuse(self, why: str, now: float) -> None:
        """Remember why it is not; what was in force stays."""
        self.problem, self._since, self._is_told = why, now, False

    def again(self) -> None:
        """Read the files at the next look even if they are as they were."""
        self._mark = None

    def complaint(self, now: float) -> str:
        """What has been wrong for a moment and was not told yet; tells it once."""
        if not self.problem or self._is_told or now - self._since < _SETTLE_S:
            return ""
        self._is_told = True
        return self.problem


def _mark_of(paths: tuple[Path, ...]) -> _Mark:
    marks: list[tuple[int, ...]] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            marks.append(())
        else:
            marks.append(
                (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode)
            )
    return tuple(marks)


def _check_private(path: Path) -> None:
    mode = path.stat().st_mode
    if mode & stat.S_IRWXO:
        msg = (
            f"{path} holds a private key that every user of this machine can reach "
            f"(mode {stat.S_IMODE(mode):04o}): chmod 600 {path}"
        )
        raise KeyRefusedError(msg)


def _read(path: Path, what: str, refused: type[CertificateRefusedError]) -> bytes:
    try:
        return read_regular(path, limit_bytes=_LARGEST_BYTES)
    except OSError as error:
        raise refused(f"cannot read {what} {path}: {error.strerror}") from None
