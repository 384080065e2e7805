"""Where are the secrets that gateways elsewhere need? In memory, and in the local one's files."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from headrace.control.agents.messages import Secret
from headrace.gateway import SecretFiles
from headrace.gateway.resources import Resource


@dataclass(slots=True, kw_only=True)
class SharedSecrets:
    """Secrets of all gateways. `local`: the files of one on this host, if there is one.

    `note_change`: called when gateways elsewhere have to be told.
    """

    local: SecretFiles | None = None
    note_change: Callable[[], None] = lambda: None
    _known: dict[str, Secret] = field(default_factory=dict)

    def all(self) -> tuple[Secret, ...]:
        """As gateways are told."""
        return tuple(secret for _, secret in sorted(self._known.items()))

    def write(self, secret: Resource) -> None:
        """Put it where a gateway finds it that starts. Blocking."""
        if self.local is not None:
            self.local.write(secret)
        self._take(secret)

    def has(self, name: str) -> bool:
        """Whether there is one of this name, as it was last in force."""
        return name in self._known or (self.local is not None and self.local.has(name))

    async def put(self, secret: Resource) -> None:
        """Return once the local gateway uses it; others are told.

        Raises:
            HeadraceError: As `SecretFiles.put`.
        """
        if self.local is not None:
            await self.local.put(secret)
        self._take(secret)

    def keep_only(self, names: Collection[str]) -> None:
        """Remove all others. Blocking."""
        if self.local is not None:
            self.local.keep_only(names)
        for name in self._known.keys() - set(names):
            del self._known[name]

    def _take(self, resource: Resource) -> None:
        secret = secret_of(resource)
        if self._known.get(secret.name) != secret:
            self._known[secret.name] = secret
            self.note_change()


def secret_of(resource: Resource) -> Secret:
    """One of Envoy's secrets as it travels."""
    found: dict[str, Any] = dict(resource)
    name = str(found["name"])
    if "validation_context" in found:
        authorities = found["validation_context"]["trusted_ca"]["inline_string"]
        return Secret(name=name, certificates=authorities)
    pair = found["tls_certificate"]
    return Secret(
        name=name,
        certificates=pair["certificate_chain"]["inline_string"],
        key=pair["private_key"]["inline_string"],
    )
