"""Does the port of this container answer a path? Exit status 0 or 1, and why not.

`healthcheck.py PORT PATH` wants 200; with `any` as the third argument every answer is good that is
no server's error, for what asks who is there. Made of little, so that it starts in 20 ms: an
orchestrator asks every few seconds. HEADRACE_HEALTH_PORT names another port, and
HEADRACE_HEALTH_TLS=1 says that it is encrypted; whose certificate it is does not matter here.
"""

import os
import socket
import sys

_TIMEOUT_S = 2.0


def ask(port: int, path: str, *, encrypted: bool) -> str:
    """The status line of `GET path`.

    Raises:
        OSError: Nobody listens, or answers in time.
    """
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", port), timeout=_TIMEOUT_S)
    if encrypted:
        import ssl  # noqa: PLC0415  # a third of the time that the whole check takes

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = context.wrap_socket(connection)
    with connection:
        connection.sendall(request.encode())
        return connection.recv(64).split(b"\r\n", 1)[0].decode("latin-1")


def is_good(status_line: str, *, any_answer: bool) -> bool:
    """Whether `HTTP/1.1 200 OK` or the like says that all is well."""
    status = status_line.split(" ")[1:2]
    return status == ["200"] or (any_answer and bool(status) and status[0][:1] in {"2", "3", "4"})


def main() -> int:
    """0 if the answer is good."""
    port, path = int(os.environ.get("HEADRACE_HEALTH_PORT") or sys.argv[1]), sys.argv[2]
    try:
        status = ask(port, path, encrypted=os.environ.get("HEADRACE_HEALTH_TLS") == "1")
    except OSError as error:
        print(f"port {port}: {error}")  # noqa: T201  # `docker inspect` shows it
        return 1
    print(status)  # noqa: T201  # as above
    return 0 if is_good(status, any_answer=sys.argv[3:] == ["any"]) else 1


if __name__ == "__main__":
    sys.exit(main())
