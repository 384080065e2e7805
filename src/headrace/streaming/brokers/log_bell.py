"""Who waits for something new in a log hears of it at once: a datagram to each, in the folder.

It only ends a wait early. Who hears nothing, as on a disk that has no sockets, looks now and then.
"""

import os
import select
import socket
from contextlib import suppress
from pathlib import Path
from typing import Final

FOLDER: Final = "waiting"
"""Of a log: where those who wait can be rung."""
_ENOUGH_BYTES: Final = 16
_MILLISECONDS: Final = 1000


class Bell:
    """Rings in the log in `folder`, and hears it after `listen`.

    For one thread at a time, but for `wake`.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / FOLDER
        with suppress(FileExistsError):
            path.mkdir(mode=0o700)
            if os.geteuid() == 0:  # the log may be another's, who has to get in; as SQLite does
                owner = folder.stat()
                os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
        # A socket's path may have 107 bytes; this one is short wherever the log lies.
        self._folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.settimeout(0)
        self._poller = select.poll()
        self._name = ""

    def listen(self, name: str) -> bool:
        """Be rung from now on, under a name of one's own; False if that cannot be."""
        try:
            self._socket.bind(self._address(name))
        except OSError:
            return False
        self._name = name
        self._poller.register(self._socket, select.POLLIN)
        return True

    def ring(self) -> None:
        """Tell all others who listen; who has died since is forgotten."""
        with suppress(OSError):
            for name in os.listdir(self._folder):  # noqa: PTH208  # a folder that is open has no path
                if name != self._name:
                    self._send(name)

    def wake(self) -> None:
        """Ring oneself; from any thread."""
        if self._name:
            self._send(self._name)

    def wait(self, timeout_s: float) -> None:
        """Until it rings, or that time is over."""
        if self._poller.poll(timeout_s * _MILLISECONDS):
            with suppress(BlockingIOError):
                while True:
                    self._socket.recv(_ENOUGH_BYTES)

    def close(self) -> None:
        """Hear no more; twice is once."""
        if self._folder < 0:
            return
        if self._name:
            self._forget(self._name)
        self._socket.close()
        os.close(self._folder)
        self._folder = -1

    def _send(self, name: str) -> None:
        try:
            self._socket.sendto(b"!", self._address(name))
        except (BlockingIOError, FileNotFoundError):
            pass  # it has heard enough; it has left
        except ConnectionRefusedError:
            self._forget(name)
        except OSError:
            pass  # it looks by itself a little later

    def _forget(self, name: str) -> None:
        with suppress(OSError):
            os.unlink(name, dir_fd=self._folder)

    def _address(self, name: str) -> str:
        return f"/proc/self/fd/{self._folder}/{name}"
