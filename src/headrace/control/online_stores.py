"""Can replicas, which may write nothing, read an online store in a file? Seen to before they start.

A reader that may not write needs what SQLite has beside the file (`-wal`, `-shm`) to be there, and
the last writer that closes the file removes it. So the control plane holds the file open.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from headrace.core import FailedPreconditionError

if TYPE_CHECKING:
    from headrace.features import OnlineStore

SQLITE: Final = "sqlite:///"
FEAST: Final = "feast://"
_BESIDE: Final = ("", "-wal", "-shm")
_ALL_MAY_READ: Final = 0o004


class OnlineStores:
    """The stores that replicas read, held open.

    `home`: a private directory: whatever lies there may be read by all who see it.
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._held: dict[Path, OnlineStore] = {}

    def prepare(self, url: str, *, for_others: bool) -> Path | None:
        """The directory that a replica has to see; None for a store that is no file.

        Args:
            for_others: Replicas run as other users than this process.

        Raises:
            FailedPreconditionError: The store cannot be read; the message says how to mend it.
        """
        if url.startswith(FEAST):
            return Path(url.removeprefix(FEAST))  # its files are Feast's, and read as they are
        if not url.startswith(SQLITE):
            return None
        from headrace.features import open_online_store  # noqa: PLC0415  # few need it

        file = Path(url.removeprefix(SQLITE))
        if file not in self._held:
            store = open_online_store(url)
            store.watermark("")  # makes it, where it is not there
            self._held[file] = store
        if for_others:
            self._let_read(file)
        return file.parent

    def close(self) -> None:
        """Let go of all stores; replicas that read them go on."""
        for store in self._held.values():
            store.close()
        self._held.clear()

    def _let_read(self, file: Path) -> None:
        is_ours = file.is_relative_to(self._home)
        if is_ours:
            file.parent.chmod(0o755)  # the home around it is private
        for suffix in _BESIDE:
            path = file.with_name(file.name + suffix)
            try:
                mode = path.stat(follow_symlinks=not is_ours).st_mode
            except FileNotFoundError:
                continue
            if mode & _ALL_MAY_READ:
                continue
            if not is_ours:
                message = (
                    f"{path} may be read by its owner only, and replicas run as users of their "
                    "own; `chmod o+r` it, or leave the online store in the home"
                )
                raise FailedPreconditionError(message)
            _let_all_read(path)


def _let_all_read(path: Path) -> None:
    """The same as `chmod`, of the file itself: who writes the store may put a link in its place."""
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        Path(f"/proc/self/fd/{descriptor}").chmod(0o644)
    except OSError as error:
        message = f"{path} cannot be made readable for replicas: {error.strerror}"
        raise FailedPreconditionError(message) from error
    finally:
        os.close(descriptor)
