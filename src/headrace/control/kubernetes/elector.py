"""The thin async driver around `lease`: holds the Lease, or waits for it."""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from headrace.control.kubernetes.api import ClusterApi
from headrace.control.kubernetes.failures import LeadershipLostError, ObjectChangedError
from headrace.control.kubernetes.lease import (
    LeaseTimes,
    Seen,
    Step,
    is_leading,
    lease_name,
    lease_object,
    next_step,
    released,
    seen,
)
from headrace.control.kubernetes.names import Place
from headrace.core import Clock, HeadraceError

_LOG: Final = logging.getLogger("headrace.control")


@dataclass(slots=True, kw_only=True)
class Elector:
    """One candidate. `on_change` is called when it begins to lead."""

    api: ClusterApi
    place: Place
    identity: str
    clock: Clock
    times: LeaseTimes = field(default_factory=LeaseTimes)
    on_change: Callable[[], None] = lambda: None
    elected: asyncio.Event = field(default_factory=asyncio.Event)
    _known: Seen | None = None
    _renewed_at: float | None = None
    _error: str = ""

    @property
    def leader(self) -> str:
        """Who leads, as far as is known; empty for nobody."""
        return "" if self._known is None else self._known.holder

    def is_leading(self) -> bool:
        """Whether this control plane may act now."""
        return is_leading(self._renewed_at, self.times, now=self.clock.monotonic())

    async def run(self) -> None:
        """Stand for election, and lead, until cancelled.

        Raises:
            LeadershipLostError: It led, and may no more. Whoever awaits this has to end.
        """
        while True:
            try:
                async with asyncio.timeout(self.times.patience_s):
                    await self._try_once()
            except LeadershipLostError:
                raise
            except (HeadraceError, TimeoutError) as error:
                self._tell(str(error) or "no answer in time")
            else:
                self._error = ""
            if self._renewed_at is not None and not self.is_leading():
                raise LeadershipLostError(
                    f"{self.identity} leads no more: its lease could not be renewed in "
                    f"{self.times.duration_s - self.times.margin_s:g} s"
                )
            await asyncio.sleep(self.times.renew_s)

    async def resign(self) -> None:
        """Give the Lease back, so that the next one need not wait; does its best."""
        known, self._renewed_at = self._known, None
        if known is None or known.holder != self.identity:
            return
        try:
            async with asyncio.timeout(self.times.patience_s):
                await self.api.update(released(known, place=self.place))
        except (HeadraceError, TimeoutError) as error:
            _LOG.warning("cannot give the lease back", extra={"error": str(error)})

    def _tell(self, error: str) -> None:
        """Say what is wrong, once for as long as it is."""
        if error != self._error:
            _LOG.warning("cannot see to the lease", extra={"error": error})
        self._error = error

    async def _try_once(self) -> None:
        sent_at = self.clock.monotonic()
        found = await self.api.get("Lease", lease_name(self.place))
        self._known = seen(found, self._known, now=sent_at)
        step = next_step(self._known, identity=self.identity, now=sent_at)
        if self._renewed_at is not None and step is not Step.RENEW:
            raise LeadershipLostError(f"{self.leader or 'nobody'} holds the lease now")
        if step is Step.WAIT:
            return
        wanted = lease_object(
            self._known,
            place=self.place,
            identity=self.identity,
            times=self.times,
            wall=self.clock.now(),
        )
        write = self.api.create if step is Step.CREATE else self.api.update
        try:
            written = await write(wanted)
        except ObjectChangedError:
            return  # another candidate was quicker: look again
        self._lead(written, sent_at)

    def _lead(self, written: dict[str, object], sent_at: float) -> None:
        self._known = seen(written, self._known, now=sent_at)
        self._renewed_at = sent_at
        if not self.elected.is_set():
            _LOG.info("leading", extra={"identity": self.identity})
            self.elected.set()
            self.on_change()
