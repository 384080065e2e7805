"""The least a server can do: read the body into a buffer that is there, run, write the answer.

One connection at a time, no JSON, no checks, the head is not even read. What a real server adds
to this is its price.
"""

import contextlib
import socket
import sys
from pathlib import Path

import numpy as np

from bench.load.connection import HEAD_END
from bench.session import session

HEAD_BYTES = 1 << 16


def serve(model: Path, port: int) -> None:
    """Answer on loopback until killed."""
    bare = session(model)
    (takes,) = bare.get_inputs()
    (gives,) = bare.get_outputs()
    shape = (1, *takes.shape[1:])
    tensor = np.empty(shape, np.float32)
    listener = socket.create_server(("127.0.0.1", port))
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # The load tool ends in the middle of a request, which resets the connection.
        with connection, contextlib.suppress(ConnectionError):
            while read_body(connection, tensor.data.cast("B")):
                (answer,) = bare.run([gives.name], {takes.name: tensor})
                body = answer.tobytes()
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)


def read_body(connection: socket.socket, into: memoryview) -> bool:
    """Fill `into` with the next request's body; False when the caller has gone.

    The head is whatever comes before the first empty line.
    """
    head = b""
    while HEAD_END not in head:
        data = connection.recv(HEAD_BYTES)
        if not data:
            return False
        head += data
    start = head.split(HEAD_END, 1)[1]
    into[: len(start)] = start
    filled = len(start)
    while filled < len(into):
        received = connection.recv_into(into[filled:])
        if not received:
            return False
        filled += received
    return True


if __name__ == "__main__":
    serve(Path(sys.argv[1]), int(sys.argv[2]))
