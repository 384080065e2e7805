"""Ask gateways at a steady rate, whether or not they answer, until told to end by SIGTERM.

Run as a program: `python asking.py OUT RATE NAME=URL...`. Each request is one JSON line of OUT: the
gateway's name, when it began (seconds on this machine's monotonic clock), how long it took, the
status or the error's name, and which replica answered.
"""

import asyncio
import json
import signal
import sys
import time
from pathlib import Path
from typing import IO, Final

import httpx

_ROW: Final = {
    "inputs": [{"name": "input", "shape": [1, 32], "datatype": "FP32", "data": [0.5] * 32}]
}
_TIMEOUT_S: Final = 15.0


async def ask(client: httpx.AsyncClient, name: str, url: str, out: IO[str]) -> None:
    """One request, and its line."""
    began = time.monotonic()
    try:
        answer = await client.post(url, json=_ROW)
        status = str(answer.status_code)
    except httpx.HTTPError as error:
        status = type(error).__name__
    line = {"gateway": name, "at": began, "took_s": time.monotonic() - began, "status": status}
    out.write(json.dumps(line) + "\n")


async def keep_asking(out: IO[str], rate: float, urls: dict[str, str], stop: asyncio.Event) -> None:
    """Ask each in turn; `rate` is that of each."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    async with (
        httpx.AsyncClient(timeout=_TIMEOUT_S, limits=limits) as client,
        asyncio.TaskGroup() as group,
    ):
        began, turn = time.monotonic(), 0
        while not stop.is_set():
            for name, url in urls.items():
                group.create_task(ask(client, name, url, out))
            turn += 1
            await asyncio.sleep(max(0.0, began + turn / rate - time.monotonic()))


async def main(arguments: list[str]) -> None:
    """Ask until SIGTERM."""
    path, rate, *pairs = arguments
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    urls = dict(pair.split("=", 1) for pair in pairs)
    with Path(path).open("w", buffering=1) as out:  # noqa: ASYNC230  # nothing else runs yet
        await keep_asking(out, float(rate), urls, stop)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1:]))
