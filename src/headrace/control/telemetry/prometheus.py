"""History from a Prometheus server that scrapes the control plane, for older data."""

import asyncio
import contextlib
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import msgspec

from headrace.core import FailedPreconditionError, UnavailableError
from headrace.core.error_kind import UNDECODABLE
from headrace.monitor.promql import restricted

if TYPE_CHECKING:
    import httpx

_LOG: Final = logging.getLogger("headrace.control")
_TIMEOUT_S: Final = 5.0
_MIN_SPAN_S: Final = 120  # a rate needs two samples, and one may be missing
_MAX_ANSWER: Final = 8 << 20
_REQUESTS: Final = "headrace_endpoint_requests_total"
_LATENCY: Final = "headrace_endpoint_latency_seconds_bucket"
_SAMPLED_S: Final = 60  # replicas change: sum gauges, then take the mean
QUANTITIES: Final = (
    "requests_per_s",
    "errors_per_s",
    "rejections_per_s",
    "p50_s",
    "p95_s",
    "p99_s",
    "batch_rows",
    "queue_s",
    "in_flight",
    "replicas_ready",
)
"""Names of the queried quantities."""


class _Series(msgspec.Struct, frozen=True):
    values: list[tuple[float, str]] = []


class _Data(msgspec.Struct, frozen=True):
    result: list[_Series] = []


class _Answer(msgspec.Struct, frozen=True):
    status: str
    data: _Data = _Data()
    error: str = ""


def queries(endpoint: str, version: str, step_s: float) -> dict[str, str]:
    """Return a query for each of `QUANTITIES`, over spans of `step_s` before each point.

    Args:
        version: Empty for all versions; roles of a version are summed.
    """
    only = f',version="{version.partition("~")[0]}"' if version else ""
    labels, model = f'endpoint="{endpoint}"{only}', f'model="{endpoint}"{only}'
    length = f"{max(math.ceil(step_s), _MIN_SPAN_S)}s"
    span = f"[{length}]"

    def rate(more: str = "") -> str:
        return f"sum(rate({_REQUESTS}{{{labels}{more}}}{span}))"

    def quantile(q: float) -> str:
        return f"histogram_quantile({q},sum by(le)(rate({_LATENCY}{{{labels}}}{span})))"

    def mean(histogram: str) -> str:
        total, count = (
            f"sum(rate({histogram}_{part}{{{model}}}{span}))" for part in ("sum", "count")
        )
        return f"{total}/{count}"

    def level(gauge: str) -> str:
        return f"avg_over_time(sum({gauge})[{length}:{_SAMPLED_S}s])"

    return {
        "requests_per_s": rate(),
        "errors_per_s": rate(',outcome="error"'),
        "rejections_per_s": rate(',outcome="rejected"'),
        "p50_s": quantile(0.5),
        "p95_s": quantile(0.95),
        "p99_s": quantile(0.99),
        "batch_rows": mean("headrace_batch_rows"),
        "queue_s": mean("headrace_queue_wait_seconds"),
        "in_flight": level(f"headrace_requests_in_flight{{{model}}}"),
        "replicas_ready": level(f'headrace_replicas{{{labels},state="ready"}}'),
    }


@dataclass(slots=True, kw_only=True)
class PrometheusHistory:
    """Reads the HTTP API of a Prometheus server at `url`; tests replace `transport`."""

    url: str
    matchers: str = ""
    """PromQL matchers of this system's series; empty for all series."""
    transport: "httpx.AsyncBaseTransport | None" = None
    _is_reported: bool = field(default=False)

    def __post_init__(self) -> None:
        """Check `url`.

        Raises:
            FailedPreconditionError: `url` is not a valid address.
        """
        parts = urlsplit(self.url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            shown = parts.hostname or "it"  # the rest may contain a password
            raise FailedPreconditionError(f"--prometheus-url: {shown} is not an http or https URL")

    async def series(
        self, endpoint: str, version: str, *, first_end: float, last_end: float, step_s: float
    ) -> Mapping[str, Mapping[int, float]]:
        """Return the known values by quantity and step number, counted from 0.

        The first step ends at `first_end`. Empty if Prometheus does not answer; see the log.
        """
        import httpx  # noqa: PLC0415  # slow import; few systems have Prometheus

        promql = {
            name: restricted(query, self.matchers)
            for name, query in queries(endpoint, version, step_s).items()
        }
        span = {"start": f"{first_end:.3f}", "end": f"{last_end:.3f}", "step": f"{step_s:g}"}
        try:
            async with httpx.AsyncClient(
                timeout=_TIMEOUT_S, transport=self.transport, trust_env=False
            ) as client:
                answers = await asyncio.gather(
                    *(self._ask(client, {"query": query, **span}) for query in promql.values())
                )
        except (httpx.HTTPError, UnavailableError) as error:
            if not self._is_reported:
                _LOG.warning("cannot read Prometheus", extra={"error": str(error) or repr(error)})
            self._is_reported = True
            return {}
        self._is_reported = False
        pairs = zip(promql, answers, strict=True)
        return {name: _by_step(answer, first_end, step_s) for name, answer in pairs}

    async def _ask(self, client: "httpx.AsyncClient", query: Mapping[str, str]) -> _Answer:
        url = f"{self.url.rstrip('/')}/api/v1/query_range"
        content = bytearray()
        async with client.stream("GET", url, params=dict(query)) as response:
            async for part in response.aiter_bytes():
                content += part
                if len(content) > _MAX_ANSWER:
                    raise UnavailableError("its answer is too large")
        try:
            answer = msgspec.json.decode(content, type=_Answer)
        except UNDECODABLE as error:
            raise UnavailableError(f"HTTP {response.status_code}: {error}") from error
        if answer.status != "success":
            raise UnavailableError(f"HTTP {response.status_code}: {answer.error[:500]}")
        return answer


def _by_step(answer: _Answer, first_end: float, step_s: float) -> dict[int, float]:
    by_step = {}
    for series in answer.data.result:
        for timestamp, text in series.values:
            with contextlib.suppress(ValueError):
                value = float(text)
                if math.isfinite(value):  # a quantile without samples is NaN
                    by_step[round((timestamp - first_end) / step_s)] = value
    return by_step
