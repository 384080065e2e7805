"""Certificates and API keys in force: files, expiry and replacement."""

import asyncio
import logging
import re
import ssl
import stat
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from headrace.control.base.faults import LOOP, Faults
from headrace.control.model.records import Event
from headrace.core import Clock, FailedPreconditionError, HeadraceError
from headrace.core.files import read_regular, write_atomic
from headrace.core.spec.access import TlsSpec
from headrace.gateway.pem import (
    Certificate,
    CertificateRefusedError,
    KeyRefusedError,
    certificates_alone,
    check_authorities,
    check_pair,
    first_certificate,
)
from headrace.observe.metrics import Family, gauge

_SETTLE_S: Final = 1.0
"""Seconds to wait for a consistent pair: certificate and key files are replaced separately."""
_LARGEST_BYTES: Final = 4 << 20
_VISIBLE: Final = re.compile(rb"[!-~]+")
_MAX_API_KEY_BYTES: Final = 8192
_CIPHERS: Final = "ECDHE+AESGCM:ECDHE+CHACHA20"
Mark = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PemFiles:
    """Files that belong together: a certificate and its key, or authorities, or an API key.

    `name` identifies them. `what` describes their purpose in messages.
    """

    name: str
    what: str
    certificate_file: Path | None = None
    """None for an API key."""
    key_file: Path | None = None
    """None for authorities."""
    is_server: bool = True
    """Whether it is a server certificate."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """All files."""
        return tuple(path for path in (self.certificate_file, self.key_file) if path is not None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pem:
    """Content of the files and its fields; an API key has neither certificates nor fields."""

    certificates: bytes = b""
    key: bytes | None = field(default=None, repr=False)
    facts: Certificate | None = None
    """Fields of the certificate, or of the authority that expires first."""


def read_pem(files: PemFiles, *, now: float) -> Pem:
    """Read and check the files. Blocking.

    Raises:
        CertificateRefusedError: The content cannot be used; the message names the file.
    """
    certificates, key = b"", None
    if files.certificate_file is not None:
        certificates = _read(files.certificate_file, files.what, CertificateRefusedError)
    if files.key_file is not None:
        what = f"the key of {files.what}" if files.certificate_file else files.what
        key = _read(files.key_file, what, KeyRefusedError)
        mode = files.key_file.stat().st_mode
        if mode & stat.S_IRWXO:
            msg = (
                f"{files.key_file} holds {what}, and every user of this machine can reach it "
                f"(mode {stat.S_IMODE(mode):04o}): chmod 600 {files.key_file}"
            )
            raise KeyRefusedError(msg)
    try:
        if files.certificate_file is None:
            return Pem(key=_api_key(key or b""))
        if key is None:
            valid = [
                authority
                for authority in check_authorities(certificates, now=now)
                if authority.not_after > now
            ]
            facts = min(valid, key=lambda authority: authority.not_after)
        else:
            facts = check_pair(certificates, key, now=now, server=files.is_server)
        # The file may also hold the key, which must not be copied with the certificates.
        certificates = certificates_alone(certificates)
    except CertificateRefusedError as error:
        raise type(error)(f"{files.what} {files.paths[0]}: {error}") from None
    return Pem(certificates=certificates, key=key, facts=facts)


def _api_key(content: bytes) -> bytes:
    lines = content.strip().splitlines()
    if not lines:
        raise KeyRefusedError("the file is empty; write the key into it")
    if len(lines) > 1:
        msg = f"the file has {len(lines)} lines; write the key alone, in one line"
        raise KeyRefusedError(msg)
    if len(lines[0]) > _MAX_API_KEY_BYTES:
        raise KeyRefusedError(f"the key is longer than {_MAX_API_KEY_BYTES} bytes")
    if _VISIBLE.fullmatch(lines[0]) is None:
        raise KeyRefusedError("the key has spaces or characters that no HTTP header may have")
    return lines[0]


def tls_context(protocol: int) -> ssl.SSLContext:
    """Return the context for connections of the control plane and agents: TLS 1.2 and later."""
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_COMPRESSION
    context.set_ciphers(_CIPHERS)
    context.set_alpn_protocols(["http/1.1"])
    return context


def show_certificate(context: ssl.SSLContext, pem: Pem, directory: Path) -> None:
    """Load a checked certificate and its key into a context.

    Args:
        directory: Private directory; `ssl` reads files, so the key is briefly written to one.
    """
    with tempfile.NamedTemporaryFile(dir=directory) as file:  # mode 0600
        file.write(pem.certificates + b"\n" + (pem.key or b""))
        file.flush()
        context.load_cert_chain(file.name)


@dataclass(slots=True, kw_only=True)
class PemWatch:
    """Polls the files of a certificate or of an API key; the caller passes the Unix time."""

    files: PemFiles
    pem: Pem | None = None
    problem: str = ""
    """Reason why the files' current content is not in force; empty if it is."""
    _mark: Mark | None = None
    _since: float = 0.0
    _is_reported: bool = False

    def is_due(self) -> bool:
        """Whether the files must be read, or a problem must be reported. Blocking."""
        return (bool(self.problem) and not self._is_reported) or mark_of(
            self.files.paths
        ) != self._mark

    def poll(self, now: float) -> Pem | None:
        """Return the files' content if it is new and valid, else None. Blocking."""
        mark = mark_of(self.files.paths)
        if mark == self._mark:
            return None
        self._mark = mark
        try:
            pem = read_pem(self.files, now=now)
        except FailedPreconditionError as error:
            self.refuse(str(error), now)
            return None
        self.problem = ""
        return None if pem == self.pem else pem

    def take(self, pem: Pem) -> None:
        """Record that `pem` is in force."""
        self.pem = pem
        self.problem = ""

    def refuse(self, reason: str, now: float) -> None:
        """Record why it is not in force; the previous content stays."""
        self.problem, self._since, self._is_reported = reason, now, False

    def again(self) -> None:
        """Read the files at the next poll even if they did not change."""
        self._mark = None

    def complaint(self, now: float) -> str:
        """Return a problem that persisted briefly and was not reported yet; only once."""
        if not self.problem or self._is_reported or now - self._since < _SETTLE_S:
            return ""
        self._is_reported = True
        return self.problem


def mark_of(paths: tuple[Path, ...]) -> Mark:
    """Return a mark that changes with the files' content, also behind symbolic links."""
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


def _read(path: Path, description: str, refused: type[CertificateRefusedError]) -> bytes:
    try:
        return read_regular(path, limit_bytes=_LARGEST_BYTES)
    except OSError as error:
        raise refused(f"cannot read {description} {path}: {error.strerror}") from None


_LOG: Final = logging.getLogger("headrace.control")
_POLL_INTERVAL_S: Final = 0.2
_DAY_S: Final = 86_400.0
_RETRY_S: Final = 5.0
"""Seconds after which a delivery that its receiver refused is retried."""
Deliver = Callable[[Pem], Awaitable[None]]
Emit = Callable[[Sequence[Event]], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateStatus:
    """Status of a certificate, of authorities, or of an API key, which has no fingerprint."""

    name: str
    what: str
    file: str
    subject: str = ""
    names: tuple[str, ...] = ()
    fingerprint: str = ""
    expires_at: float | None = None
    """Unix time of the expiry."""
    days_left: float | None = None
    problem: str = ""
    """Reason why its files' current content is not in force. Nothing of a
    certificate is in force if `fingerprint` is empty.
    """


@dataclass(slots=True, kw_only=True)
class _StoredCertificate:
    watch: PemWatch
    deliver: Deliver
    failed_at: float | None = None


@dataclass(slots=True, kw_only=True)
class Certificates:
    """Polls certificate files, and delivers new valid content to its receivers."""

    clock: Clock
    emit: Emit = field(default=lambda _events: _nothing())
    """Records events."""
    faults: Faults = field(default_factory=Faults)
    _kept: dict[str, _StoredCertificate] = field(default_factory=dict)

    def keep(self, watch: PemWatch, deliver: Deliver) -> None:
        """Watch these files, instead of others with the same name."""
        self._kept[watch.files.name] = _StoredCertificate(watch=watch, deliver=deliver)

    def open(self, files: PemFiles, load: Callable[[Pem], None]) -> None:
        """Call `load` with the files' content now, and in a thread whenever they are replaced.

        Blocking.

        Raises:
            FailedPreconditionError: The files cannot be used now.
        """
        watch = PemWatch(files=files)
        pem = watch.poll(self.clock.now())
        if pem is None:
            raise FailedPreconditionError(watch.problem)
        load(pem)
        watch.take(pem)
        self.keep(watch, lambda pem: asyncio.to_thread(load, pem))

    def drop(self, name: str) -> None:
        """Stop watching these files."""
        self._kept.pop(name, None)

    def names(self) -> list[str]:
        """Return the names of all watched files."""
        return list(self._kept)

    def watches(self, name: str) -> bool:
        """Whether files of this name are watched."""
        return name in self._kept

    def is_in_force(self, name: str) -> bool:
        """Whether valid content of this name is in force."""
        stored = self._kept.get(name)
        return stored is not None and stored.watch.pem is not None

    def problem(self, name: str) -> str:
        """Return why the newest content of this name is not in force; empty if it is."""
        stored = self._kept.get(name)
        return "" if stored is None else stored.watch.problem

    async def run(
        self, on_first: Callable[[str], Awaitable[None]] = lambda _name: _nothing()
    ) -> None:
        """Poll until cancelled.

        Args:
            on_first: Called with the name of a certificate that had no valid version before.
        """
        while True:
            await asyncio.sleep(_POLL_INTERVAL_S)
            self.faults.keep_only("certificate", self._kept)
            with self.faults.contain(LOOP, "certificates"):
                for name in await asyncio.to_thread(self._due, dict(self._kept)):
                    with self.faults.contain("certificate", name):
                        was_in_force = self.is_in_force(name)
                        await self.poll(name)
                        if self.is_in_force(name) and not was_in_force:
                            await on_first(name)

    def _due(self, certificates: Mapping[str, _StoredCertificate]) -> list[str]:
        """Return the due names. One thread checks all, so that a slow disk blocks nothing."""
        return [
            name
            for name, stored in certificates.items()
            if stored.failed_at is not None or stored.watch.is_due()
        ]

    async def poll(self, name: str) -> None:
        """Poll the files of a name now."""
        stored = self._kept.get(name)
        if stored is None:
            return
        watch, now = stored.watch, self.clock.now()
        if stored.failed_at is not None and self.clock.monotonic() - stored.failed_at >= _RETRY_S:
            stored.failed_at = None
            watch.again()
        pem = await asyncio.to_thread(watch.poll, now)
        if pem is not None:
            await self._deliver(stored, pem)
        elif problem := watch.complaint(now):
            retained_text = "nothing is" if watch.pem is None else "the one before stays"
            message = f"{problem}; {retained_text} in force"
            await self._emit_event(watch.files, "CertificateRefused", message)

    async def _deliver(self, stored: _StoredCertificate, pem: Pem) -> None:
        watch = stored.watch
        try:
            await stored.deliver(pem)
        except (HeadraceError, OSError) as error:  # OSError: the disk is full
            watch.refuse(str(error), self.clock.now())
            stored.failed_at = self.clock.monotonic()
            return
        is_first = watch.pem is None
        watch.take(pem)
        stored.failed_at = None
        if not is_first:
            message = f"{watch.files.what} was replaced"
            if pem.facts is not None:
                days = (pem.facts.not_after - self.clock.now()) / _DAY_S
                message += f": for {pem.facts.subject or 'no subject'}, {days:.0f} days left"
            await self._emit_event(watch.files, "CertificateReplaced", message)

    async def _emit_event(self, files: PemFiles, reason: str, message: str) -> None:
        is_bad = reason == "CertificateRefused"
        _LOG.log(logging.ERROR if is_bad else logging.INFO, "%s", message)
        event = Event(
            at=self.clock.now(),
            endpoint="",
            kind="gateway",
            reason=reason,
            message=message,
            data={"certificate": files.name, "file": str(files.paths[0])},
        )
        try:
            await self.emit([event])
        except HeadraceError as error:
            _LOG.error("cannot write an event", extra={"error": str(error)})

    def statuses(self) -> tuple[CertificateStatus, ...]:
        """Return the current status of all certificates."""
        now = self.clock.now()
        return tuple(_status(stored.watch, now) for stored in self._kept.values())

    def families(self) -> list[Family]:
        """Return the expiry times as metrics."""
        left, refused = [], []
        for status in self.statuses():
            labels = (("certificate", status.name),)
            refused.append((labels, bool(status.problem)))
            if status.days_left is not None:
                left.append((labels, status.days_left * _DAY_S))
        return [
            gauge("headrace_control_certificate_left_seconds", "Until it expires.", left),
            gauge(
                "headrace_control_certificate_refused",
                "1 while its files are invalid.",
                refused,
            ),
        ]


async def _nothing() -> None:
    """Do nothing: the default callback."""


def _status(watch: PemWatch, now: float) -> CertificateStatus:
    files = watch.files
    status = CertificateStatus(
        name=files.name,
        what=files.what,
        file=str(files.paths[0]),
        problem=watch.problem,
    )
    facts = None if watch.pem is None else watch.pem.facts
    if facts is None:
        return status
    days = (facts.not_after - now) / _DAY_S
    return replace(
        status,
        subject=facts.subject,
        names=facts.names,
        fingerprint=facts.fingerprint,
        expires_at=facts.not_after,
        days_left=round(days, 2),
        problem=watch.problem or (f"it expired {-days:.1f} days ago" if days < 0 else ""),
    )


ADMIN: Final = "admin"
"""Name of the management API's certificate."""


def _context() -> ssl.SSLContext:
    context = tls_context(ssl.PROTOCOL_TLS_SERVER)
    context.options |= ssl.OP_NO_RENEGOTIATION
    return context


@dataclass(slots=True, kw_only=True)
class AdminTls:
    """TLS context of all connections to the management API and the metrics."""

    certificates: Certificates
    public_file: Path
    """File with its certificate for local callers."""
    context: ssl.SSLContext = field(default_factory=_context)

    def open(self, settings: TlsSpec) -> None:
        """Read the files, and watch them from now on. Blocking.

        Raises:
            FailedPreconditionError: The files cannot be used.
        """
        files = PemFiles(
            name=ADMIN,
            what="the management API's certificate",
            certificate_file=Path(settings.certificate_file),
            key_file=Path(settings.key_file),
        )
        if settings.min_version == "1.3":
            self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.certificates.open(files, self._load)

    def _load(self, pem: Pem) -> None:
        """Use `pem` for new connections. It was checked, so loading cannot fail partially."""
        show_certificate(self.context, pem, self.public_file.parent)
        write_atomic(self.public_file, first_certificate(pem.certificates), durable=False)
