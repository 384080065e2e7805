"""Online stores in files, prepared for replicas without write access.

A reader without write access needs the files that SQLite keeps beside a store (`-wal`, `-shm`), and
the last writer that closes the store removes them. So the control plane holds each store open. A
replica sees the store's whole directory, because SQLite may recreate these files at any time.
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Final

from headrace.core import FailedPreconditionError
from headrace.core.feature_settings import FEAST, SQLITE

if TYPE_CHECKING:
    from headrace.features import OnlineStore

_IN_HOME: Final = Path("features", "online")
_BESIDE: Final = ("", "-wal", "-shm")
_ALL_MAY_READ: Final = 0o004


class OnlineStores:
    """The stores that replicas read, held open.

    `home` is private: replicas see only its directory `features/online`. `hidden` are directories
    elsewhere that replicas must not see, such as the directory of sockets.
    """

    def __init__(self, home: Path, *hidden: Path) -> None:
        self._own = home / _IN_HOME
        self._closed = [Path(os.path.realpath(path)) for path in (home, *hidden)]
        self._held: dict[Path, OnlineStore] = {}

    def directory_of(self, url: str) -> Path | None:
        """Return the resolved directory of a store; None for a store that is not a file.

        Creates only the home's directory of online stores.

        Raises:
            FailedPreconditionError: It does not exist, or holds other files of Headrace.
        """
        if url.startswith(FEAST):
            path = Path(url.removeprefix(FEAST))
            folder = path if path.is_dir() else path.parent
        elif url.startswith(SQLITE) or "://" not in url:
            folder = Path(url.removeprefix(SQLITE)).parent
        else:
            return None
        if not folder.is_absolute():
            message = f"the path of the online store {url} has to be absolute"
            raise FailedPreconditionError(message)
        folder, own = Path(os.path.realpath(folder)), Path(os.path.realpath(self._own))
        try:
            if folder == own:
                own.mkdir(parents=True, exist_ok=True, mode=0o700)
                return folder
            self.check_separate(folder, f"move the online store into {self._own}")
            if not folder.is_dir():
                message = f"the online store's directory {folder} does not exist; create it first"
                raise FailedPreconditionError(message)
        except OSError as error:
            message = f"the online store's directory {folder} cannot be used: {error.strerror}"
            raise FailedPreconditionError(message) from error
        return folder

    def check_separate(self, folder: Path, remedy: str) -> None:
        """Check that model processes may see a directory, given without links.

        Raises:
            FailedPreconditionError: It is inside a hidden directory, or contains one.
        """
        if any(folder.is_relative_to(c) or c.is_relative_to(folder) for c in self._closed):
            message = (
                f"{folder} holds files of Headrace, or the directory that does, which replicas and "
                f"workers may not see; {remedy}, or into a directory for it alone elsewhere"
            )
            raise FailedPreconditionError(message)

    def is_own(self, folder: Path) -> bool:
        """Whether `folder` is the home's directory of online stores."""
        return folder == Path(os.path.realpath(self._own))

    def prepare(self, url: str, *, for_others: bool) -> Path | None:
        """Return the directory that a replica has to see; None for a store that is not a file.

        Args:
            for_others: Replicas run as other users than this process.

        Raises:
            FailedPreconditionError: The store cannot be read; the message says how to fix it.
        """
        folder = self.directory_of(url)
        if folder is None or url.startswith(FEAST):  # Feast's files are read directly
            return folder
        from headrace.features import open_online_store  # noqa: PLC0415  # few need it

        file = folder / Path(url.removeprefix(SQLITE)).name
        if file not in self._held:
            store = open_online_store(f"{SQLITE}{file}")
            store.watermark("")  # creates a missing store
            self._held[file] = store
        if for_others:
            try:
                self._let_read(file)
            except OSError as error:
                message = f"{file} cannot be made readable for replicas: {error.strerror}"
                raise FailedPreconditionError(message) from error
        return folder

    def close(self) -> None:
        """Close all stores; replicas that read them keep running."""
        for store in self._held.values():
            store.close()
        self._held.clear()

    def _let_read(self, file: Path) -> None:
        is_own = self.is_own(file.parent)
        if is_own:
            _set_mode(file.parent, 0o755)  # a directory for this only, in a private home
        for suffix in _BESIDE:
            path = file.with_name(file.name + suffix)
            try:
                mode = path.stat(follow_symlinks=not is_own).st_mode
            except FileNotFoundError:
                continue
            if mode & _ALL_MAY_READ:
                continue
            if not is_own:
                message = (
                    f"{path} may be read by its owner only, and replicas run as users of their "
                    f"own; `chmod o+r` it, or move the online store into {self._own}"
                )
                raise FailedPreconditionError(message)
            _set_mode(path, 0o644)


def _set_mode(path: Path, mode: int) -> None:
    """Change the mode without following links: a writer of the store may replace it by a link."""
    descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        Path(f"/proc/self/fd/{descriptor}").chmod(mode)
    finally:
        os.close(descriptor)
