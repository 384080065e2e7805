"""Real Kubernetes cluster whose nodes are hosts of `network`; each part is a program on its host.

`python cluster.py SETTINGS.json`: the control plane, or the kubelet of a node. Pods are processes
with addresses of their own on their node's bridge.
"""

import asyncio
import base64
import sys
from ipaddress import IPv4Network
from pathlib import Path

import msgspec

from scripts.kube_server import cache
from tests.kube_server.cluster import Cluster, Network
from tests.kube_server.kubelet import Kubelet

NAMESPACE = "models"
SECRET = "internal"  # noqa: S105  # its name


class ClusterSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one program."""

    folder: str
    """Of the cluster: certificates, database, kubeconfig; `ready` once it is."""
    server: str
    """Address of the API server."""
    token: str
    """Of the administrator, and in the Secret of the control plane."""
    namespace: str
    """Network namespace of the host."""
    address: str
    pods: str
    """Addresses of pods on the host."""
    node: str = ""
    """Empty for the control plane."""
    store: str
    """Folder that all pods have."""


async def main(settings: ClusterSettings) -> None:
    """Run until killed."""
    folder, pods = Path(settings.folder), IPv4Network(settings.pods)
    network = Network(settings.namespace, settings.server, settings.address, pods)
    cluster = Cluster(cache(), folder, network, token=settings.token)
    if settings.node:
        await network.remove_pods()
        shared = [Path(settings.store)]
        node = folder / settings.node
        await Kubelet(cluster, (settings.node,), node, is_fake=False, shared=shared).run()
        return
    await cluster.__aenter__()  # all of it ends with this process
    async with cluster.http() as http:
        head = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
        (await http.post("/api/v1/namespaces", json=head)).raise_for_status()
        data = {"token": base64.b64encode(settings.token.encode()).decode()}
        secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "data": data}
        path = f"/api/v1/namespaces/{NAMESPACE}/secrets"
        (await http.post(path, json=secret)).raise_for_status()
    (folder / "ready").touch()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=ClusterSettings)))
