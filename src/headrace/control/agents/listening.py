"""How does uvicorn tell whose certificate it was shown? Imported late, as uvicorn is."""

from headrace.control.agents.revoked import fingerprint_of
from headrace.control.agents.server import AGENT, FINGERPRINT, UNTIL
from headrace.control.agents.tls import agent_name, expires_at
from headrace.control.edge import BoundedProtocol


class AgentProtocol(BoundedProtocol):
    """HTTP/1.1 that tells the application whom the certificate names."""

    def on_headers_complete(self) -> None:
        """The application begins after this."""
        secure = self.transport.get_extra_info("ssl_object")
        certificate = (None if secure is None else secure.getpeercert()) or {}
        encoded = (None if secure is None else secure.getpeercert(binary_form=True)) or b""
        told = {
            AGENT: agent_name(certificate),
            UNTIL: expires_at(certificate),
            FINGERPRINT: fingerprint_of(encoded),
        }
        self.scope.update(told)  # type: ignore[typeddict-item]  # keys of ours
        super().on_headers_complete()
