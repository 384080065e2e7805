"""Who fills the history? Looks every second at what the gateway counted, and keeps it in a file.

A control plane that starts again goes on with the file; what came meanwhile is in the gateway's
totals.
"""

import asyncio
import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol

from headrace.control.looking import Looking
from headrace.core import HeadraceError
from headrace.gateway import GatewayStatistics
from headrace.monitor import History

_LOG: Final = logging.getLogger("headrace.control")
_BLIND_S: Final = 0.25
_AT_ONCE: Final = 20


class CountsSource(Protocol):
    """What counts requests by endpoint and version."""

    async def read_endpoints(self, endpoints: Collection[str]) -> GatewayStatistics:
        """Totals of all requests to these endpoints.

        Raises:
            HeadraceError: The gateway does not answer.
        """


@dataclass(slots=True, kw_only=True)
class Recorder(Looking[History]):
    """Looks at what the gateway counted. `names`: the endpoints that there are."""

    WHAT: ClassVar = "the history"
    SHARE: ClassVar = 20.0

    gateway: CountsSource
    names: Callable[[], Collection[str]]
    history: History = field(default_factory=History)
    _is_blind: bool = True  # nobody is told of a gateway that has not come up yet

    @property
    def every_s(self) -> float:
        """As of `Looking`; sooner while the gateway does not answer."""
        return _BLIND_S if self._is_blind else 1.0

    async def look(self) -> None:
        """Look once."""
        at = self.clock.now()
        try:
            reading = await self.gateway.read_endpoints(self.names())
        except HeadraceError as error:
            if not self._is_blind:
                _LOG.warning("cannot read the gateway's counts", extra={"error": str(error)})
            self._is_blind = True
            return
        self._is_blind = False
        self.check_clock(at)
        self.history.look(at)
        self.faults.keep_only("history", {endpoint for endpoint, _ in reading.arms})
        for number, ((endpoint, version), totals) in enumerate(reading.arms.items(), start=1):
            with self.faults.contain("history", endpoint):
                self.history.add(at, endpoint, version, totals, epoch=reading.epoch)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # whoever asks for something does not wait for all of it
