"""Which keys does an identity provider's URL give now? Envoy asks that too, but remembers tokens.

It goes on taking a token that it has seen, for as long as that is valid, although the key that
signed it is gone. So the gateway is told when keys changed, and forgets what it remembers.
"""

# ruff: noqa: PLC0415  # HTTP clients take longer to load than a gateway without providers to start

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from headrace.core import Clock
from headrace.core.access_settings import JwtSettings
from headrace.gateway import usable_key_set

_LOG: Final = logging.getLogger("headrace.control")
_TIMEOUT_S: Final = 5.0
_MOST_BYTES: Final = 1 << 20

Fetch = Callable[[str], Awaitable[str]]
"""The text that a URL gives; OSError if it gives none."""


async def fetch_text(url: str) -> str:
    """The text at an HTTP URL, at most 1 MiB.

    Raises:
        OSError: There is none, in time or at all.
    """
    return await asyncio.to_thread(_fetch, url)


def _fetch(url: str) -> str:
    import http.client
    import urllib.request

    # Directly, as Envoy asks: a proxy could show this process other keys than those that count.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=_TIMEOUT_S) as answer:
            body: bytes = answer.read(_MOST_BYTES + 1)
    except (http.client.HTTPException, ValueError) as error:
        raise OSError(f"no answer: {error}") from error
    if len(body) > _MOST_BYTES:
        raise OSError(f"more than {_MOST_BYTES} bytes")
    return body.decode("utf-8", "replace")


@dataclass(slots=True, kw_only=True)
class KeyWatch:
    """Knows a digest of the keys that each provider's URL gave last, asked every `jwks_cache_s`."""

    clock: Clock
    fetch: Fetch = fetch_text
    _digests: dict[JwtSettings, str] = field(default_factory=dict)
    _due: dict[JwtSettings, float] = field(default_factory=dict)

    def digests(self, providers: Iterable[JwtSettings]) -> Mapping[str, str]:
        """By provider's name, of those that answered once."""
        return {jwt.name: self._digests[jwt] for jwt in providers if jwt in self._digests}

    async def look(self, providers: Iterable[JwtSettings]) -> None:
        """Ask the URLs of those whose keys are old; a URL that does not answer changes nothing."""
        now = self.clock.monotonic()
        by_url = [jwt for jwt in providers if jwt.jwks_url]
        for gone in self._due.keys() - set(by_url):
            del self._due[gone]
            self._digests.pop(gone, None)
        due = [jwt for jwt in by_url if self._due.get(jwt, now) <= now]
        self._due.update({jwt: now + jwt.jwks_cache_s for jwt in due})
        async with asyncio.TaskGroup() as group:
            for jwt in due:
                group.create_task(self._ask(jwt))

    async def _ask(self, jwt: JwtSettings) -> None:
        try:
            found = usable_key_set(await self.fetch(jwt.jwks_url))
        except OSError as error:
            extra = {"provider": jwt.name, "error": str(error)}
            _LOG.info("cannot fetch a provider's keys", extra=extra)
            return
        if not found:
            return
        # Sorted: some providers list the same keys in another order each time.
        keys = sorted(json.dumps(key, sort_keys=True) for key in json.loads(found)["keys"])
        self._digests[jwt] = hashlib.sha256("\n".join(keys).encode()).hexdigest()[:16]
