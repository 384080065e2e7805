"""Gateway on another host: Envoy and its agent. Imports `control` and below."""

from headrace.gateway_agent.settings import AgentSettings

__all__ = ["AgentSettings", "run"]


def run(settings: AgentSettings) -> int:
    """Run the agent until it is stopped; return the exit status.

    SIGTERM and SIGINT drain requests and end Envoy.
    """
    from headrace.gateway_agent.main import run as run_agent  # noqa: PLC0415  # costly to load

    return run_agent(settings)
