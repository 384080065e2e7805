"""TLS of the gateway with callers and upstreams, API keys of upstreams: files and secrets."""

import asyncio
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, Protocol

from headrace.control.gateway.certificates import Certificates, Pem, PemFiles, PemWatch, read_pem
from headrace.core import Clock, FailedPreconditionError
from headrace.core.files import write_atomic
from headrace.core.spec.access import TlsSpec
from headrace.core.spec.parse import GatewaySpec, SpecMistake
from headrace.core.spec.upstream import UpstreamSpec, UpstreamTlsSpec
from headrace.gateway import EndpointRoute, ListenerTls
from headrace.gateway.pem import (
    CertificateRefusedError,
    KeyRefusedError,
    OutOfDateError,
    first_certificate,
)
from headrace.gateway.resources import Resource
from headrace.gateway.tls import (
    CERTIFICATE,
    CLIENT_AUTHORITIES,
    UPSTREAMS,
    api_key_name,
    api_key_secret,
    authorities_name,
    authorities_secret,
    certificate_name,
    certificate_secret,
)

_MAX_UPSTREAM_SECRETS: Final = 64
"""Most secrets of upstreams: Envoy uses one inotify instance for each, and Linux allows 128."""


def listener_tls(tls: TlsSpec | None) -> ListenerTls | None:
    """Return the TLS settings of the gateway's listeners; None without TLS."""
    if tls is None:
        return None
    return ListenerTls(
        min_version=tls.min_version,
        takes_clients=bool(tls.client_ca_file),
        requires_client=tls.require_client_certificate,
    )


def lacks_secret(upstream: UpstreamSpec | None, missing: frozenset[str]) -> bool:
    """Whether an upstream needs a secret that is missing, so that nothing may be sent to it."""
    return upstream is not None and any(f.name in missing for f in _files_of(upstream, ""))


class Secrets(Protocol):
    """Secrets of gateways: files for the one on this host, or messages to several."""

    def write(self, secret: Resource, /) -> None:
        """Store a secret for gateways that start later. Blocking."""

    def has(self, name: str, /) -> bool:
        """Whether a secret of this name is in force."""

    async def put(self, secret: Resource, /) -> None:
        """Send a secret; return once gateways use it, or it is queued for them."""

    def keep_only(self, names: Collection[str], /) -> None:
        """Remove all secrets except `names`. Blocking."""


@dataclass(slots=True, kw_only=True)
class GatewayTls:
    """Copies certificates from users' files to Envoy's secrets."""

    settings: TlsSpec | None
    secrets: Secrets
    certificates: Certificates
    clock: Clock
    public_file: Path
    """File with the gateway's certificate for local callers."""
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def open(self, *, adopts: bool) -> None:
        """Read the files for callers' connections, and write Envoy's secrets. Blocking.

        Args:
            adopts: Whether an Envoy already runs with earlier secrets.

        Raises:
            FailedPreconditionError: The files cannot be used, and no earlier ones are in force.
        """
        if self.settings is None:
            self.public_file.unlink(missing_ok=True)
        for files in listener_files(self.settings):
            watch = PemWatch(files=files)
            pem = watch.poll(self.clock.now())
            if pem is not None:
                self.secrets.write(pem_secret(files.name, pem))
                self._show(files.name, pem)
                watch.take(pem)
            elif not (adopts and self.secrets.has(files.name)):
                raise FailedPreconditionError(watch.problem)
            self.certificates.keep(watch, partial(self._load_secret, files.name))

    async def prepare(self, routes: Iterable[EndpointRoute]) -> frozenset[str]:
        """Prepare the secrets of all upstreams of `routes`; return the names of missing ones.

        Upstreams that need a missing secret get no requests.
        """
        required = {files.name: files for files in upstream_files(routes)}
        async with self._lock:
            for files in list(required.values())[:_MAX_UPSTREAM_SECRETS]:
                if not self.certificates.watches(files.name):
                    watch = PemWatch(files=files)
                    self.certificates.keep(watch, partial(self._load_secret, files.name))
                    await self.certificates.poll(files.name)
        return frozenset(
            name
            for name in required
            # Secrets that an earlier control plane accepted are still in force.
            if not (self.certificates.is_in_force(name) or self.secrets.has(name))
        )

    async def forget_unused(self, routes: Iterable[EndpointRoute]) -> None:
        """Remove unused secrets; call it after `routes` are in force."""
        required = {
            files.name for files in (*listener_files(self.settings), *upstream_files(routes))
        }
        for name in self.certificates.names():
            if name.startswith(UPSTREAMS) and name not in required:
                self.certificates.drop(name)
        await asyncio.to_thread(self.secrets.keep_only, required)

    def upstream_problem(self, upstream: UpstreamSpec | None, missing: frozenset[str]) -> str:
        """Return why an upstream gets no requests if it needs one of the `missing` secrets."""
        if upstream is None or not lacks_secret(upstream, missing):
            return ""
        problems = (self.certificates.problem(f.name) for f in _files_of(upstream, ""))
        return "; ".join(filter(None, problems)) or "too many certificates and keys for upstreams"

    async def _load_secret(self, name: str, pem: Pem) -> None:
        await self.secrets.put(pem_secret(name, pem))
        await asyncio.to_thread(self._show, name, pem)

    def _show(self, name: str, pem: Pem) -> None:
        """Write the public certificate for local callers."""
        if name == CERTIFICATE:
            write_atomic(self.public_file, first_certificate(pem.certificates), durable=False)


def listener_files(tls: TlsSpec | None) -> Iterator[PemFiles]:
    """Yield the files for callers' connections."""
    if tls is None:
        return
    yield PemFiles(
        name=CERTIFICATE,
        what="the gateway's certificate",
        certificate_file=Path(tls.certificate_file),
        key_file=Path(tls.key_file),
    )
    if tls.client_ca_file:
        yield PemFiles(
            name=CLIENT_AUTHORITIES,
            what="the authorities of callers",
            certificate_file=Path(tls.client_ca_file),
        )


def upstream_files(routes: Iterable[EndpointRoute]) -> Iterator[PemFiles]:
    """Yield the files for requests to upstreams."""
    for route in routes:
        for arm in route.arms:
            if arm.upstream is not None:
                yield from _files_of(arm.upstream, route.name)


def _files_of(upstream: UpstreamSpec, endpoint: str) -> Iterator[PemFiles]:
    if upstream.api_key_file:
        yield PemFiles(
            name=api_key_name(upstream),
            what=f"the API key of the upstream of '{endpoint}'",
            key_file=Path(upstream.api_key_file),
        )
    tls = upstream.tls or UpstreamTlsSpec()
    if tls.ca_file:
        yield PemFiles(
            name=authorities_name(tls),
            what=f"the authorities of the upstream of '{endpoint}'",
            certificate_file=Path(tls.ca_file),
        )
    if tls.certificate_file:
        yield PemFiles(
            name=certificate_name(tls),
            what=f"the certificate for the upstream of '{endpoint}'",
            certificate_file=Path(tls.certificate_file),
            key_file=Path(tls.key_file),
            is_server=False,
        )


def tls_mistakes(spec: GatewaySpec, *, now: float) -> list[SpecMistake]:
    """Return the mistakes in the files under `gateway.tls`. Blocking."""
    return _mistakes(listener_files(spec.tls), "gateway", "tls.client_ca_file", now=now)


def upstream_mistakes(
    upstream: UpstreamSpec, endpoint: str, location: str, *, now: float
) -> list[SpecMistake]:
    """Return the mistakes in the files of an upstream, which is at `location`. Blocking.

    An expired certificate is no mistake: a start with an unchanged spec would fail for all
    endpoints.
    """
    files = _files_of(upstream, endpoint)
    return _mistakes(files, location, "tls.ca_file", now=now, takes_old=True)


def _mistakes(
    files: Iterable[PemFiles],
    location: str,
    authorities: str,
    *,
    now: float,
    takes_old: bool = False,
) -> list[SpecMistake]:
    mistakes = []
    for pem in files:
        try:
            read_pem(pem, now=now)
        except CertificateRefusedError as error:
            if takes_old and isinstance(error, OutOfDateError):
                continue
            name = "tls.key_file" if isinstance(error, KeyRefusedError) else "tls.certificate_file"
            if pem.certificate_file is None:
                name = "api_key_file"
            elif pem.key_file is None:
                name = authorities
            mistakes.append(SpecMistake(place=f"{location}.{name}", message=str(error)))
    return mistakes


def pem_secret(name: str, pem: Pem) -> Resource:
    """Return the Envoy secret for the content of files."""
    certificates = pem.certificates.decode("ascii", "replace")
    if pem.key is None:
        return authorities_secret(name, certificates)
    key = pem.key.decode("ascii", "replace")
    if not pem.certificates:
        return api_key_secret(name, key)
    return certificate_secret(name, chain=certificates, key=key)
