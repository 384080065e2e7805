"""Ports for the servers of all tests."""

import socket

_HANDED_OUT: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, and never the same twice: it is not taken at once."""
    while True:
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            port = int(sock.getsockname()[1])
        if port not in _HANDED_OUT:
            _HANDED_OUT.add(port)
            return port
