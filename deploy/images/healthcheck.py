"""Does the port of this container answer a path with 200? Exit status 0 or 1, and why not.

`healthcheck.py PORT PATH`, with nothing but a socket, so that it starts in 20 ms: an orchestrator
asks every few seconds. HEADRACE_HEALTH_PORT names another port.
"""

import os
import socket
import sys

_TIMEOUT_S = 2.0


def ask(port: int, path: str) -> str:
    """The status line of `GET path`.

    Raises:
        OSError: Nobody listens, or answers in time.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S) as connection:
        request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode())
        return connection.recv(64).split(b"\r\n", 1)[0].decode("latin-1")


def main() -> int:
    """0 if the answer is 200."""
    port, path = int(os.environ.get("HEADRACE_HEALTH_PORT") or sys.argv[1]), sys.argv[2]
    try:
        status = ask(port, path)
    except OSError as error:
        print(f"port {port}: {error}")  # noqa: T201  # `docker inspect` shows it
        return 1
    print(status)  # noqa: T201  # as above
    return 0 if status.split(" ")[1:2] == ["200"] else 1


if __name__ == "__main__":
    sys.exit(main())
