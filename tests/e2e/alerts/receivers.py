"""Receivers of alerts: a web server and a mail server that keep what they get."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WITHIN_S = 30.0


@dataclass(slots=True)
class Web:
    """What was posted; `refuses` says how many posts get a 503 first."""

    port: int = 0
    refuses: int = 0
    bodies: list[Any] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def wait_for(self, condition: Callable[[Any], bool]) -> Any:
        """The first body that is as wanted."""
        return wait_for(
            lambda: next((body for body in self.bodies if condition(body)), None),
            lambda: f"no such post among {self.bodies}",
        )


def wait_for(look: Callable[[], Any], describe: Callable[[], str] = lambda: "nothing came") -> Any:
    """What `look` finds, as soon as it finds anything; `describe` says how things are if not."""
    deadline = time.monotonic() + WITHIN_S
    while (found := look()) is None:
        assert time.monotonic() < deadline, f"after {WITHIN_S:g} s: {describe()}"
        time.sleep(0.02)
    return found


@contextmanager
def web_server(*, refuses: int = 0) -> Iterator[Web]:
    """A web server that takes JSON until the block ends."""
    web = Web(refuses=refuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            web.headers.append({key.lower(): value for key, value in self.headers.items()})
            status = 503 if len(web.headers) <= web.refuses else 200
            if status == 200:
                web.bodies.append(json.loads(body))
            # A refusal repeats what it was sent, as some servers do for debugging.
            answer = f"no: {self.path} {self.headers}".encode() if status != 200 else b""
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield web
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@dataclass(slots=True)
class MailServer:
    """A mail server without TLS, as far as smtplib needs one; keeps envelopes and texts."""

    port: int = 0
    refuses: bool = False
    mails: list[tuple[list[str], str]] = field(default_factory=list)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        envelope: list[str] = []
        writer.write(b"220 mail\r\n")
        while line := (await reader.readline()).decode().strip():
            verb = line.partition(" ")[0].upper()
            if verb in {"MAIL", "RCPT"}:
                envelope.append(line)
            if verb == "DATA":
                writer.write(b"354 go on\r\n")
                text = (await reader.readuntil(b"\r\n.\r\n")).decode()
                self.mails.append((envelope, text))
            if verb == "RCPT" and self.refuses:
                writer.write(b"550 nobody of that name\r\n")
            else:
                writer.write(b"221 bye\r\n" if verb == "QUIT" else b"250 ok\r\n")
            if verb == "QUIT":
                break
        writer.close()
