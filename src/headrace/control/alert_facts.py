"""What do alerts have to know of replicas, queues, the gateway, certificates and streams?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from headrace.control.agents.protocol import Gateway
from headrace.control.alerting import Facts
from headrace.control.backoff import MANY_FAILURES
from headrace.control.desired import POOL_PREFIX, DesiredEndpoint
from headrace.control.observed import Phase, Replica
from headrace.control.reconciling import Reconciling
from headrace.control.row_watch import RowWatch
from headrace.core import HeadraceError
from headrace.monitor.slo import EndpointFacts, StreamFacts, SystemFacts

_DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class FactsReader:
    """Reads them from the parts that know.

    `drifted`: how many features of an endpoint drifted; None if nobody looks. `jobs_late`,
    `jobs_failed`: how many jobs are late, or failed last; None if that is not known. `streams`:
    how each stream is.
    """

    reconciler: Reconciling
    keeper: Gateway
    rows: RowWatch
    drifted: Callable[[str], int | None] = lambda _endpoint: None
    jobs_late: Callable[[], int | None] = lambda: None
    jobs_failed: Callable[[], int | None] = lambda: None
    streams: Callable[[], Mapping[str, StreamFacts]] = dict

    async def read(self) -> Facts:
        """All of them, now."""
        in_flight = await self._in_flight()
        replicas: dict[str, list[Replica]] = {}
        for replica in self.reconciler.replicas.values():
            replicas.setdefault(replica.endpoint, []).append(replica)
        return Facts(
            system=SystemFacts(
                gateway_ready=self.keeper.is_ready,
                certificate_left_s=self._certificate_left_s(),
                jobs_late=self.jobs_late(),
                jobs_failed=self.jobs_failed(),
            ),
            endpoints={
                endpoint.name: replace(
                    _facts(endpoint, replicas, in_flight),
                    drifted=self.drifted(endpoint.name),
                    rows_differ=self.rows.differing(endpoint.name)[0],
                    rows_detail=self.rows.differing(endpoint.name)[1],
                )
                for endpoint in self.reconciler.desired.endpoints
            },
            streams=self.streams(),
        )

    async def _in_flight(self) -> Mapping[str, int] | None:
        """Requests on their way by endpoint; None if the gateway does not say."""
        if not self.keeper.is_ready:
            return None
        try:
            arms = await self.keeper.in_flight()
        except HeadraceError:
            return None
        found: dict[str, int] = {}
        for (name, _), count in arms.items():
            found[name] = found.get(name, 0) + count
        return found

    def _certificate_left_s(self) -> float | None:
        tls = self.keeper.tls
        left = () if tls is None else [one.days_left for one in tls.certificates.statuses()]
        return min((days * _DAY_S for days in left if days is not None), default=None)


def _facts(
    endpoint: DesiredEndpoint,
    replicas: Mapping[str, list[Replica]],
    in_flight: Mapping[str, int] | None,
) -> EndpointFacts:
    own = [replica for name in _hosts(endpoint) for replica in replicas.get(name, ())]
    ready = sum(replica.phase is Phase.READY for replica in own)
    return EndpointFacts(
        replicas_ready=ready if _wants_replicas(endpoint) else None,
        in_flight=None if in_flight is None else in_flight.get(endpoint.name, 0),
        crashing=sum(replica.failures >= MANY_FAILURES for replica in own),
    )


def _hosts(endpoint: DesiredEndpoint) -> list[str]:
    """Whose replicas answer: its own, or those of a pool."""
    pools = {arm.revision.pool for arm in endpoint.arms} - {""}
    return [endpoint.name, *(f"{POOL_PREFIX}{pool}" for pool in sorted(pools))]


def _wants_replicas(endpoint: DesiredEndpoint) -> bool:
    """Whether somebody of ours has to answer: no upstream takes requests, and it is not at rest."""
    live = [arm for arm in endpoint.arms if arm.weight]
    is_ours = bool(live) and all(arm.revision.upstream is None for arm in live)
    return is_ours and not endpoint.scaled_to_zero
