"""How is guessing slowed? Who fails too often is refused for a while, right or wrong.

Failures are counted by whom they could let in: of a known token by its id and the caller's address,
of anything else by the address. So whoever guesses locks out only himself, and a valid token works
from an address from which somebody else guesses.
"""

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

MAX_FAILURES: Final = 10
WINDOW_S: Final = 60.0
_MAX_KEYS: Final = 10_000
_IPV6_NETWORK_BITS: Final = 64
_IPV6: Final = 6


@dataclass(slots=True)
class _Count:
    since: float
    failures: int = 0


@dataclass(slots=True, kw_only=True)
class Brake:
    """Counts failures in windows of time; the caller brings the time (monotonic, in seconds)."""

    max_failures: int = MAX_FAILURES
    window_s: float = WINDOW_S
    _counts: OrderedDict[str, _Count] = field(default_factory=OrderedDict)

    def wait_s(self, key: str, now: float) -> float:
        """How long `key` is refused from now on; 0 if it is not."""
        count = self._counts.get(key)
        if count is None or count.failures < self.max_failures:
            return 0.0
        return max(count.since + self.window_s - now, 0.0)

    def fail(self, key: str, now: float) -> bool:
        """Count a failure; whether it is worth a note: the first of a window, and the last."""
        count = self._counts.get(key)
        if count is None or now - count.since >= self.window_s:
            self._counts.pop(key, None)
            count = self._counts[key] = _Count(since=now)
            # The oldest goes: with so many addresses a brake by address is lost anyway.
            while len(self._counts) > _MAX_KEYS:
                self._counts.popitem(last=False)
        count.failures += 1
        return count.failures in {1, self.max_failures}


def network_of(address: str) -> str:
    """What counts as one address: of IPv6 the network that one household has."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address or "local"
    if found.version != _IPV6:
        return str(found)
    mapped = found.ipv4_mapped
    if mapped is not None:
        return str(mapped)
    return str(ipaddress.ip_network((found, _IPV6_NETWORK_BITS), strict=False))
