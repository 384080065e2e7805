"""How is the API server reached? From inside a cluster, by a kubeconfig, or by a URL."""

from typing import TYPE_CHECKING

import headrace
from headrace.core import FailedPreconditionError

if TYPE_CHECKING:
    import httpx2

_MISSING = (
    "the driver kubernetes needs headrace[kubernetes]: python -m pip install 'headrace[kubernetes]'"
)


def connect(*, identity: str, url: str = "", context: str = "") -> "httpx2.AsyncClient":
    """A client of the API server; whoever gets it closes it.

    Args:
        identity: Who asks, for the server's own log.
        url: Of a proxy that needs no credentials, such as `kubectl proxy`; empty looks for the
            service account that a pod has, then for a kubeconfig (`KUBECONFIG`, `~/.kube/config`).
        context: Of the kubeconfig; empty for its current one.

    Raises:
        FailedPreconditionError: There is no way to one, or the extra is not installed.
    """
    try:
        import httpx2  # noqa: PLC0415  # a client that only this driver needs
        from lightkube.config.client_adapter import (  # noqa: PLC0415  # as above
            AsyncClient,
            ConnectionParams,
        )
        from lightkube.config.kubeconfig import KubeConfig  # noqa: PLC0415  # as above
        from lightkube.core.exceptions import ConfigError  # noqa: PLC0415  # as above
    except ImportError as error:
        raise FailedPreconditionError(_MISSING) from error
    headers = {"user-agent": f"headrace/{headrace.__version__} ({identity})"}
    if url:
        return httpx2.AsyncClient(base_url=url, headers=headers, trust_env=False)
    try:
        config = KubeConfig.from_env().get(context or None)
        if config is None or config.user is None:
            raise FailedPreconditionError(f"the kubeconfig has no context {context!r} with a user")
        client = AsyncClient(config, ConnectionParams())
    except (ConfigError, OSError) as error:
        raise FailedPreconditionError(
            f"no way to a cluster: {error}; run in a pod with a service account, set KUBECONFIG, "
            "or name a proxy (--kube-url)"
        ) from error
    client.headers.update(headers)
    return client
