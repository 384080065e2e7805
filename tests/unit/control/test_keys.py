from typing import Any

import pytest

from headrace.control.model.credentials import Credential, CredentialKind
from headrace.control.reconcile.caller_policy import grants_of, known_keys


@pytest.mark.parametrize(
    "grants", [{}, {"tier": "gold"}, {"scopes": "infer:*"}, {"scopes": [7]}, {"scopes": None}]
)
def test_a_stored_key_whose_grants_cannot_be_read_opens_nothing(grants: dict[str, Any]) -> None:
    key = Credential(
        id="k", kind=CredentialKind.KEY, owner="shop", hash="0", created=0.0, grants=grants
    )

    assert grants_of(key).scopes == ()
    assert [known.scopes for known in known_keys([key], 1.0)] == [()]


@pytest.mark.parametrize(
    ("expires", "revoked", "state"),
    [(None, None, "valid"), (9.0, None, "valid"), (5.0, None, "expired"), (5.0, 4.0, "revoked")],
)
def test_a_credentials_state_in_a_word(
    expires: float | None, revoked: float | None, state: str
) -> None:
    key = Credential(
        id="k",
        kind=CredentialKind.KEY,
        owner="shop",
        hash="0",
        created=0.0,
        expires=expires,
        revoked=revoked,
    )

    assert key.state(5.0) == state
