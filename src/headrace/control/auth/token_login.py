"""Login of a person with a token, by a browser: the token begins a session.

The token itself does not stay in the browser. The session lives at most as long as the token: when
that is revoked or expires, the session is not valid any more.
"""

import logging
from dataclasses import dataclass
from typing import Final

from headrace.control.auth.audit_log import Change
from headrace.control.auth.authenticate import Authenticator
from headrace.control.auth.credentials import SessionRules
from headrace.control.auth.roles import Caller
from headrace.control.state.store import Store
from headrace.core import Clock

_LOG: Final = logging.getLogger("headrace.control")


@dataclass(slots=True, kw_only=True)
class TokenLogin:
    """Begins sessions for whoever shows a token, and ends any session."""

    store: Store
    clock: Clock
    authenticator: Authenticator

    @property
    def rules(self) -> SessionRules:
        """How long sessions live, and how their cookies look."""
        return self.authenticator.rules

    async def begin(self, token: str, address: str) -> str:
        """The header that sets the cookie of a new session.

        Args:
            token: As `Authorization: Bearer` has it.
            address: Where it comes from.

        Raises:
            UnauthenticatedError: It is no valid token.
            OverloadedError: Too many have failed from there.
        """
        caller = await self.authenticator.caller({"authorization": f"Bearer {token}"}, address)
        now = self.clock.now()
        session, text = self.rules.begin(
            caller.name, (), now=now, by=caller.credential, token=caller.credential
        )
        change = Change(
            at=now,
            actor=caller.name,
            action="login",
            object=session.id,
            after={"token": caller.credential},
        )
        await self.store.add_credential(session, changes=[change])
        _LOG.info("logged in", extra={"user": caller.name})
        rules = self.rules
        return rules.set_cookie(rules.cookie_name, text, max_age_s=rules.absolute_s)

    async def end(self, caller: Caller) -> str:
        """End the caller's session; the header that removes its cookie."""
        now = self.clock.now()
        change = Change(at=now, actor=caller.name, action="logout", object=caller.credential)
        await self.store.revoke_credential(caller.credential, at=now, changes=[change])
        self.authenticator.known.forget(caller.credential)
        return self.rules.set_cookie(self.rules.cookie_name, "", max_age_s=0)
