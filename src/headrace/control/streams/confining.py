"""What do a stream's workers see of this machine, once confined? It is made ready for them here."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import msgspec

from headrace.control.online_stores import SQLITE, OnlineStores
from headrace.control.sandbox import Occasion, Sandbox, files_of
from headrace.control.secret_references import resolve_url
from headrace.core import FailedPreconditionError, HeadraceError
from headrace.streaming.brokers import log_file as bell
from headrace.streaming.settings import StreamSettings
from headrace.streaming.windows.state_file import state_folder

_LOG_FILES: Final = "log.db*"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What a worker has besides what is everybody's: its own to write, to read, and connections."""

    own: list[Path]
    keep: list[Path]
    network: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Confining:
    """Makes ready what workers need. `stores`: those that confined processes read, held open."""

    home: Path
    sandbox: Sandbox
    stores: OnlineStores

    def seen(self, told: StreamSettings) -> Seen:
        """What the worker of these settings has; folders that it writes are there, and its user's.

        Raises:
            OSError: A folder or a store cannot be made ready; the text says how to mend that.
        """
        folder = embedded_log(told.broker, self.home)
        own = [self._state(told)] if told.windows is not None else []
        keep = [] if told.model is None else list(files_of(Path(told.model.path)))
        if told.endpoint is not None and told.endpoint.ca_file:
            keep.append(Path(told.endpoint.ca_file))
        try:
            own = [*([] if folder is None else self._log(folder)), *own]
            reads, writes = _stores_of(told)
            keep += self._read(reads)
            own += self._written(writes)
        except HeadraceError as error:
            raise OSError(str(error)) from error
        return Seen(
            own=own,
            keep=[path for path in keep if path not in own],
            network=folder is None
            or told.endpoint is not None
            or not all(map(is_file, (*reads, *writes))),
        )

    def _log(self, folder: Path) -> list[Path]:
        """The folder of an embedded log, made, and its files the workers' user's.

        What root makes there later, SQLite gives to the owner of the file that it belongs to.
        Another's folder that holds no log stays as it is.
        """
        folder = Path(os.path.realpath(folder))
        logs = Path(os.path.realpath(self.home)) / "streams"
        is_ours = folder.is_relative_to(logs) and folder != logs
        if is_ours:
            folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        else:
            self.stores.check_apart(folder, "name the log `log:NAME`")
            if not folder.parent.is_dir():
                msg = f"there is no directory {folder.parent} for the embedded log; make it first"
                raise FailedPreconditionError(msg)
        if folder.exists() and not is_ours and not any(folder.glob(_LOG_FILES)):
            return []
        folder.mkdir(exist_ok=True, mode=0o700)
        self._give((folder, folder / bell.FOLDER, *folder.glob(_LOG_FILES)))
        return [folder]

    def _state(self, told: StreamSettings) -> Path:
        """The folder of windows' states."""
        folder = state_folder(msgspec.structs.replace(told, home=str(self.home)))
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._give((folder, *folder.iterdir()))
        return folder

    def _written(self, urls: Iterable[str]) -> Iterator[Path]:
        """The folders of online stores in the home that are written, and hold nothing else.

        Raises:
            FailedPreconditionError: One does, or is not the home's and not the workers' either,
                or has no directory.
        """
        for url in urls:
            folder, uid = self.stores.directory_of(url), self._uid()
            if folder is None:
                continue
            file = folder / Path(url.removeprefix(SQLITE)).name
            if self.stores.is_own(folder):
                _check_alone(file)
                self.stores.prepare(url, for_others=uid is not None)
                self._give((folder, *folder.iterdir()))
                yield folder
            elif uid is not None and not _may_write(file, uid):
                msg = (
                    f"workers of streams run as user {uid}, who may not write {file} and beside "
                    f"it; `chown {uid}` the file and its folder, or leave the online store in the "
                    "home"
                )
                raise FailedPreconditionError(msg)

    def _read(self, urls: Iterable[str]) -> Iterator[Path]:
        """Where the online stores lie that features are looked up in."""
        for url in urls:
            folder = self.stores.prepare(url, for_others=self._uid() is not None)
            if folder is not None:
                yield folder

    def _give(self, paths: Iterable[Path]) -> None:
        uid = self._uid()
        if uid is None:
            return
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                os.chown(path, uid, uid, follow_symlinks=False)

    def _uid(self) -> int | None:
        """Whom workers run as; None for whoever this process is."""
        return self.sandbox.user(Occasion.STREAM)


def embedded_log(url: str, home: Path) -> Path | None:
    """The folder of the embedded log that a URL names; None for another broker."""
    if not url.lower().startswith("log:"):
        return None
    path = unquote(urlsplit(url).path)
    return Path(path) if path.startswith("/") else home / "streams" / path


def is_file(url: str) -> bool:
    """Whether an online store is a file of this machine."""
    return url.startswith(SQLITE) or "://" not in url


def _stores_of(told: StreamSettings) -> tuple[list[str], list[str]]:
    """The URLs of the online stores that a worker reads, and of those that it writes.

    Raises:
        FailedPreconditionError: A variable is not set.
    """
    looked_up = msgspec.UNSET if told.model is None else told.model.features
    reads = [] if looked_up is msgspec.UNSET else [resolve_url(looked_up.online_store)]
    writes = [] if told.features is None else [resolve_url(told.features.online_store)]
    return reads, writes


def _check_alone(file: Path) -> None:
    """Refuse a store whose folder has something else: workers would own that too."""
    folder = file.parent
    names = (path.name for path in folder.iterdir() if path.name != file.name)
    other = next((name for name in names if not name.startswith(f"{file.name}-")), None)
    if other is not None:
        msg = (
            f"workers of streams would own {folder} to write {file.name}, and {other} lies there "
            f"too; move {file.name}* into a folder of its own, while nothing runs"
        )
        raise FailedPreconditionError(msg)


def _may_write(file: Path, uid: int) -> bool:
    there = [path.stat() for path in (file.parent, file) if path.exists()]
    return bool(there) and all(stat.st_uid == uid or stat.st_mode & 0o002 for stat in there)
