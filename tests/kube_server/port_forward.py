"""`kubectl port-forward svc/NAME LOCAL:REMOTE`, which a kubelet of tests does not serve.

    KUBECTL=/path/of/kubectl python port_forward.py svc/NAME LOCAL:REMOTE

As the original it waits for a pod for a minute, uses one, and ends with it.
"""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from typing import Any, Final

_KUBECTL: Final = os.environ["KUBECTL"]
_POD_WITHIN_S: Final = 60.0


def kubectl(*words: str) -> Any:  # noqa: ANN401  # JSON
    """Return the objects of a command."""
    command = [_KUBECTL, *words, "-o", "json"]
    done = subprocess.run(command, check=True, capture_output=True)  # noqa: S603  # the tests' own
    return json.loads(done.stdout)


def targets(service: str, port: str) -> list[tuple[tuple[str, int], str]]:
    """Return address and name of each ready pod of a Service."""
    slices = kubectl("get", "endpointslices", "-l", f"kubernetes.io/service-name={service}")[
        "items"
    ]
    return [
        ((endpoint["addresses"][0], number["port"]), endpoint["targetRef"]["name"])
        for part in slices
        for number in part["ports"] or ()
        for endpoint in part["endpoints"] or ()
        if number["name"] == port and endpoint["conditions"]["ready"]
    ]


async def main(service: str, ports: str) -> None:
    """Forward a port until the pod is deleted."""
    local, remote = map(int, ports.split(":"))
    name = service.removeprefix("svc/")
    (port,) = [p for p in kubectl("get", service)["spec"]["ports"] if p["port"] == remote]
    until = time.monotonic() + _POD_WITHIN_S
    while not (ready := targets(name, port["name"])) and time.monotonic() < until:  # noqa: ASYNC110  # the cluster is asked
        await asyncio.sleep(0.5)
    target, pod = ready[0]

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*target)
        await asyncio.gather(pump(reader, back), pump(there, writer), return_exceptions=True)

    async with await asyncio.start_server(serve, "127.0.0.1", local):
        wait = ("wait", "--for=delete", f"pod/{pod}", "--timeout=1h")
        process = await asyncio.create_subprocess_exec(_KUBECTL, *wait)
        await process.wait()


asyncio.run(main(*sys.argv[1:]))
