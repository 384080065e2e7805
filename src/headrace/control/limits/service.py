"""Rate limit service: gRPC server that answers gateways with the limiter's decisions.

A gateway waits at most 0.1 s for an answer and lets the request pass without one.
"""

import asyncio
import logging
import math
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, assert_never

import msgspec

from headrace.control.limits.limiter import (
    ANONYMOUS,
    TOKEN_KINDS,
    UNKNOWN,
    LimitDecision,
    Limiter,
    LimitKind,
    LimitRequest,
    LimitStatus,
    Moment,
    Rules,
    Scope,
)
from headrace.control.state.store import Store
from headrace.core import Clock, FailedPreconditionError, HeadraceError
from headrace.core.headers import LEASE_HEADER
from headrace.gateway import gateway_user, socket_mode
from headrace.gateway.statistics import TokenUse
from headrace.observe.metrics import Labels

if TYPE_CHECKING:
    import grpc

    from headrace.protocol.protos import RateLimitAnswer, RateLimitCodec

_REPORTS: Final = {
    "rows_of": "rows",
    "input_tokens_of": "input",
    "cached_tokens_of": "cached",
    "output_tokens_of": "output",
    "reasoning_tokens_of": "reasoning",
}
"""What a descriptor's hits are, by its key for the lease: rows, or a field of `TokenUse`."""
Pair = tuple[bytes, bytes]
"""A private key and its certificate with its chain, both PEM."""
_SAVE_S: Final = 1.0
_STOP_S: Final = 1.0
_LOG: Final = logging.getLogger("headrace.control")


@dataclass(frozen=True, slots=True, kw_only=True)
class SecuredAddress:
    """Address for gateways on other hosts, with mutual TLS.

    `pair` and `authorities` return the current certificates; later connections get newer ones.
    """

    address: str
    pair: Callable[[], Pair]
    authorities: Callable[[], bytes]
    refuses: Callable[[bytes], bool] = lambda _certificate: False
    """Whether a certificate (PEM) is revoked."""


@dataclass(slots=True, kw_only=True)
class LimitService:
    """Answers gateways at `addresses` once rules are set, and stores used quotas."""

    limiter: Limiter
    store: Store
    clock: Clock
    addresses: Sequence[str]
    """Listening addresses, `unix:/path` or `host:port`."""
    secured: SecuredAddress | None = None
    _needed: asyncio.Event = field(default_factory=asyncio.Event)
    _listening: asyncio.Event = field(default_factory=asyncio.Event)

    def set_rules(self, rules: Rules) -> None:
        """Decide by `rules` from now on; the counts stay."""
        self.limiter.rules = rules
        if not rules.is_empty:
            self._needed.set()

    async def wait_listening(self) -> None:
        """Return when the service accepts connections."""
        await self._listening.wait()

    async def run(self) -> None:
        """Answer gateways; save the counts each second and at the end."""
        await self._needed.wait()
        try:
            today = Moment(0.0, self.clock.now()).day
            self.limiter.restore(await self.store.quotas(today))
        except HeadraceError as error:
            _LOG.error("cannot read used quotas", extra={"error": str(error)})
        server = _make_server(self, await asyncio.to_thread(_load))
        for address in self.addresses:
            _listen(server, address)
        if self.secured is not None:
            _listen(server, self.secured.address, _credentials(self.secured))
        await server.start()
        self._listening.set()
        _LOG.info("counting limits", extra={"addresses": ", ".join(self.addresses)})
        try:
            while True:
                await asyncio.sleep(_SAVE_S)
                self.limiter.expire(self.clock.monotonic())
                await self._save()
        finally:
            await server.stop(_STOP_S)
            await self._save()

    def answer(self, codec: "RateLimitCodec", data: bytes) -> bytes:
        """Return the encoded answer to a gateway: a decision, or none to a reported end.

        Raises:
            InvalidArgumentError: The bytes are not a rate limit request.
        """
        descriptors = codec.decode(data).descriptors
        moment = Moment(self.clock.monotonic(), self.clock.now())
        answer = answer_of(LimitRequest(endpoint="", caller=""), LimitDecision())
        reports: defaultdict[str, dict[str, int]] = defaultdict(dict)
        for descriptor in descriptors:
            for key in _REPORTS.keys() & descriptor.entries.keys():
                reports[descriptor.entries[key]][_REPORTS[key]] = descriptor.hits or 0
        for descriptor in descriptors:
            lease = descriptor.entries.get("lease")
            if lease is not None:
                counts = reports[lease]
                rows = counts.pop("rows", None)
                tokens = msgspec.convert(counts, TokenUse) if counts else None
                self.limiter.end(lease, rows=rows, tokens=tokens, now=moment.now)
            elif not _REPORTS.keys() & descriptor.entries.keys():
                entries = descriptor.entries
                address = entries.get("masked_remote_address")
                anonymous = UNKNOWN if address is None else f"{ANONYMOUS}{address}"
                ask = LimitRequest(
                    endpoint=entries.get("endpoint", ""),
                    caller=entries.get("caller", anonymous),
                    tier=entries.get("tier", ""),
                )
                answer = answer_of(ask, self.limiter.ask(ask, moment))
        return codec.encode(answer, descriptors=len(descriptors))

    def refusals(self) -> list[tuple[Labels, float]]:
        """Return the refused requests by endpoint and kind of limit."""
        return [
            ((("endpoint", endpoint), ("scope", scope), ("limit", kind)), float(count))
            for (endpoint, scope, kind), count in sorted(self.limiter.refusals.items())
        ]

    async def _save(self) -> None:
        """Add the counts to the store, and read the counts of other control planes from it."""
        unsaved = self.limiter.unsaved()
        if not unsaved:
            return
        try:
            totals = await self.store.add_quotas(unsaved)
        except HeadraceError as error:
            _LOG.error("cannot store used quotas", extra={"error": str(error)})
            self.limiter.put_back(unsaved)
        else:
            self.limiter.restore(totals)


def _credentials(secured: SecuredAddress) -> "grpc.ServerCredentials":
    """Return server credentials that read the certificates for every connection."""
    import grpc  # noqa: PLC0415  # loads gRPC

    def now() -> "grpc.ServerCertificateConfiguration":
        return grpc.ssl_server_certificate_configuration(
            [secured.pair()], root_certificates=secured.authorities()
        )

    return grpc.dynamic_ssl_server_credentials(now(), now, require_client_authentication=True)


def _listen(
    server: "grpc.aio.Server", address: str, credentials: "grpc.ServerCredentials | None" = None
) -> None:
    """Bind `address`; only this user may use a Unix socket.

    Raises:
        FailedPreconditionError: The address is in use, or does not belong to this machine.
    """
    try:
        if credentials is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, credentials)
    except RuntimeError as error:
        msg = f"cannot listen on {address} for the gateways' limits; choose another address"
        raise FailedPreconditionError(msg) from error
    if address.startswith("unix:"):
        path, group = Path(address.removeprefix("unix:")), gateway_user()
        if group is not None:
            os.chown(path, -1, group)  # Envoys of this and other homes connect
        path.chmod(socket_mode())


def answer_of(ask: LimitRequest, decision: LimitDecision) -> "RateLimitAnswer":
    """Return the answer to the gateway as a protobuf message."""
    from headrace.protocol.protos import RateLimitAnswer  # noqa: PLC0415  # loads protobuf

    tightest, headers = decision.tightest, dict[str, str]()
    if tightest is not None:
        headers = {
            "x-ratelimit-limit": f"{tightest.limit:.0f}",
            "x-ratelimit-remaining": f"{tightest.remaining:.0f}",
            "x-ratelimit-reset": str(math.ceil(tightest.wait_s)),
        }
    if decision.tokens is not None:
        headers |= {
            "x-ratelimit-limit-tokens": f"{decision.tokens.limit:.0f}",
            "x-ratelimit-remaining-tokens": f"{decision.tokens.remaining:.0f}",
            "x-ratelimit-reset-tokens": f"{math.ceil(decision.tokens.wait_s)}s",
        }
    if decision.refused_by is None or tightest is None:
        lease = {LEASE_HEADER: decision.lease} if decision.lease else {}
        return RateLimitAnswer(is_allowed=True, response_headers=headers, request_headers=lease)
    retry_after = {"retry-after": str(_seconds(tightest.wait_s))}
    return RateLimitAnswer(
        is_allowed=False,
        response_headers={**headers, **retry_after},
        body=_refusal_text(ask, decision.refused_by, tightest),
    )


def _seconds(wait_s: float) -> int:
    """Return whole seconds for the header, rounded up."""
    return max(math.ceil(wait_s), 1)


def _refusal_text(ask: LimitRequest, scope: Scope, standing: LimitStatus) -> str:
    # `standing.limit` of a rate is its burst, as in the `x-ratelimit-limit` header.
    is_rate = standing.kind in {LimitKind.REQUESTS, LimitKind.ROWS, *TOKEN_KINDS}
    number = f"burst {standing.limit:.0f}" if is_rate else f"{standing.limit:.0f}"
    limit = f"{standing.kind} ({number})"
    match scope:
        case Scope.ENDPOINT:
            whose = f"endpoint '{ask.endpoint}' has reached its {limit}"
        case Scope.CALLER:
            whose = f"this caller has reached its {limit} of endpoint '{ask.endpoint}'"
        case Scope.TIER:
            whose = f"this caller has reached the {limit} of tier '{ask.tier}'"
        case _:
            assert_never(scope)
    if standing.kind is LimitKind.CONCURRENT:
        return f"too many requests at once: {whose}"
    return f"too many requests: {whose}; retry in {_seconds(standing.wait_s)} s"


def _load() -> "RateLimitCodec":
    """Load gRPC and protobuf. Blocking, 0.3 s, so only systems with limits do it."""
    import grpc.aio  # noqa: F401, PLC0415  # for its side effect: a later import is instant

    from headrace.protocol.protos import RateLimitCodec  # noqa: PLC0415  # as above

    return RateLimitCodec()


def _make_server(service: LimitService, codec: "RateLimitCodec") -> "grpc.aio.Server":
    import grpc.aio  # noqa: PLC0415  # as above

    from headrace.protocol.protos import RLS_METHOD, RLS_SERVICE  # noqa: PLC0415  # as above

    async def handle(data: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        shown = context.auth_context().get("x509_pem_cert", ())  # none over the Unix socket
        if service.secured is not None and any(map(service.secured.refuses, shown)):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, "the certificate was revoked")
        return service.answer(codec, data)

    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    method = grpc.unary_unary_rpc_method_handler(handle)
    handlers = grpc.method_handlers_generic_handler(RLS_SERVICE, {RLS_METHOD: method})
    server.add_generic_rpc_handlers((handlers,))
    return server
