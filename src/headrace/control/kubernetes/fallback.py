"""Copy of the gateways' configuration in a Secret.

A gateway that starts while no control plane answers serves from it. It has access rules, keys and
certificates, as each gateway has them on its disk, so only a Secret may hold it.
"""

import asyncio
import base64
import gzip
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from headrace.control.kubernetes.api import ClusterApi
from headrace.core import HeadraceError

_LOG: Final = logging.getLogger("headrace.control")
_INTERVAL_S: Final = 5.0
_MAX_BYTES: Final = 1 << 20
"""Kubernetes' limit for the data of a Secret."""
KEY: Final = "bundle.json.gz"


@dataclass(slots=True, kw_only=True)
class GatewayFallback:
    """Writer of the copy, at the leader; the Secret exists, as its Role can only change it."""

    api: ClusterApi
    name: str
    read: Callable[[], bytes]
    """Returns the configuration that gateways use, as JSON; empty if none uses the newest one."""
    _written: bytes = b""
    _problem: str = ""

    async def run(self) -> None:
        """Write each new configuration until cancelled; a failure is retried and logged once."""
        while True:
            await asyncio.sleep(_INTERVAL_S)
            bundle = self.read()
            if not bundle or bundle == self._written:
                continue
            problem = await self._write(bundle)
            if problem and problem != self._problem:
                _LOG.error("new gateways need a control plane: %s", problem)
            self._problem = problem

    async def _write(self, bundle: bytes) -> str:
        """Write a configuration; return why it cannot be used."""
        content = gzip.compress(bundle, 1, mtime=0)  # 10 ms for 1,000 endpoints
        is_small = len(content) <= _MAX_BYTES
        # An older copy may allow what the newest configuration denies.
        data = {KEY: base64.b64encode(content).decode() if is_small else None}
        try:
            await self.api.merge("Secret", self.name, {"data": data})
        except HeadraceError as error:
            return str(error)
        self._written = bundle
        return "" if is_small else f"their configuration is larger than {_MAX_BYTES} bytes"
