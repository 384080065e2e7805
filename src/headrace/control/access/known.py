"""Which credentials were valid a moment ago? Kept shortly: not every request asks the store.

While the store does not answer, what was valid before goes on for a while: whoever has to mend a
database must be able to look at the system.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from headrace.control.access.credentials import Credential, Principal
from headrace.control.state.store import Store
from headrace.core import Clock, FailedPreconditionError, UnavailableError

FRESH_S: Final = 1.0
OUTAGE_S: Final = 900.0
_RETRY_S: Final = 10.0
_MOST: Final = 1000


@dataclass(slots=True)
class _Known:
    credential: Credential
    principal: Principal | None
    read_at: float
    retry_at: float


@dataclass(slots=True, kw_only=True)
class KnownCredentials:
    """Credentials by id with their principals, as the store had them at most `FRESH_S` ago."""

    store: Store
    clock: Clock
    _known: OrderedDict[str, _Known] = field(default_factory=OrderedDict)

    async def find(self, id_: str) -> tuple[Credential, Principal | None] | None:
        """The credential of this id and its owner; None if there is none.

        Raises:
            UnavailableError: The store cannot be read, and this one was not seen lately.
        """
        now = self.clock.monotonic()
        known = self._known.get(id_)
        if known is not None and now < known.retry_at:
            return known.credential, known.principal
        try:
            return await self._read(id_, now)
        except FailedPreconditionError as error:
            if known is None or now - known.read_at > OUTAGE_S:
                message = f"cannot tell who asks: {error}"
                raise UnavailableError(message) from error
            known.retry_at = now + _RETRY_S
            return known.credential, known.principal

    def forget(self, id_: str = "") -> None:
        """Ask the store again, about one or all: somebody's rights changed."""
        if id_:
            self._known.pop(id_, None)
        else:
            self._known.clear()

    async def _read(self, id_: str, now: float) -> tuple[Credential, Principal | None] | None:
        credential = await self.store.credential(id_)
        if credential is None:
            self._known.pop(id_, None)
            return None
        principal = await self.store.principal(credential.owner)
        self._known[id_] = _Known(credential, principal, now, now + FRESH_S)
        self._known.move_to_end(id_)
        while len(self._known) > _MOST:
            self._known.popitem(last=False)
        return credential, principal
