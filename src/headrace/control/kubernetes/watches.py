"""What changes in the cluster? One list and one watch for each kind, for ever."""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from headrace.control.kubernetes.api import ClusterApi
from headrace.control.kubernetes.cluster import Cluster
from headrace.control.kubernetes.failures import ObjectMissingError, WatchExpiredError, delay_s
from headrace.control.kubernetes.resources import RESOURCES, WATCHED
from headrace.core import HeadraceError, PermissionDeniedError

_LOG: Final = logging.getLogger("headrace.control")
_WATCH_S: Final = 60
_LOOK_AGAIN_S: Final = 60.0
_SHORT_S: Final = 1.0
_LIST_AGAIN_S: Final = 900.0
"""Between lists where nothing is amiss: a watch from a version that the server has yet to reach, as
after its database was restored, goes on without a word."""


@dataclass(slots=True, kw_only=True)
class Watches:
    """Keeps `cluster` like the real one. `is_synced` says whether it is, so far as can be known.

    `on_change` is called after each change of either.
    """

    api: ClusterApi
    cluster: Cluster
    selector: str
    on_change: Callable[[], None]
    kinds: tuple[str, ...] = WATCHED
    error: str = ""
    _synced: set[str] = field(default_factory=set)
    _following: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    _group: asyncio.TaskGroup | None = None

    @property
    def is_synced(self) -> bool:
        """Whether all kinds were listed, and every watch goes on from there."""
        return self._synced >= set(self.kinds)

    async def run(self) -> None:
        """Watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            for kind in self.kinds:
                self._following[kind] = group.create_task(self._follow(kind))

    def begin_anew(self) -> None:
        """List everything again: versions are not what they were."""
        assert self._group is not None, "watches run"
        _LOG.warning("the cluster's versions went back; listing everything anew")
        for kind, task in self._following.items():
            task.cancel()
            self._lose(kind, "the cluster's versions went back")
            self._following[kind] = self._group.create_task(self._follow(kind))

    async def _follow(self, kind: str) -> None:
        failures = 0
        loop = asyncio.get_running_loop()
        while True:
            try:
                version = await self._list(kind)
                failures = 0
                listed_at = loop.time()
                while loop.time() < listed_at + _LIST_AGAIN_S:
                    began = loop.time()
                    version = await self._watch(kind, version)
                    if loop.time() - began < _SHORT_S:
                        await asyncio.sleep(delay_s(1))  # something between ends them at once
            except WatchExpiredError:
                # What happened since is not known: only a list tells what is gone.
                self._lose(kind, "")
                _LOG.info("watch expired; listing anew", extra={"kind": kind})
                await asyncio.sleep(delay_s(1))
            except (ObjectMissingError, PermissionDeniedError) as error:
                if RESOURCES[kind].is_optional:
                    self._do_without(kind)
                    await asyncio.sleep(_LOOK_AGAIN_S)
                else:
                    failures += 1
                    await self._pause(kind, error, failures)
            except HeadraceError as error:
                failures += 1
                await self._pause(kind, error, failures)

    async def _list(self, kind: str) -> str:
        listed = await self.api.list(kind, self.selector)
        self.cluster.replace_all(kind, listed.items)
        self._synced.add(kind)
        self.error = ""
        self.on_change()
        return listed.version

    async def _watch(self, kind: str, version: str) -> str:
        """One watch, from `version` to its end; from where the next one goes on."""
        for_s = _WATCH_S + random.randrange(_WATCH_S // 4)  # noqa: S311  # spreads their ends
        async for event in self.api.watch(kind, self.selector, version, for_s=for_s):
            if _went_back(version, event.version):
                raise WatchExpiredError(f"watch {kind}: versions went back")
            version = event.version
            if event.type == "BOOKMARK":
                continue
            is_gone = event.type == "DELETED"
            change = self.cluster.drop if is_gone else self.cluster.put
            if change(event.found):
                self.on_change()
        return version

    def _do_without(self, kind: str) -> None:
        """A cluster need not have it, nor let us see it: then there is none of ours."""
        self.cluster.replace_all(kind, ())
        if kind not in self._synced:
            self._synced.add(kind)
            self.on_change()

    async def _pause(self, kind: str, error: HeadraceError, failures: int) -> None:
        self._lose(kind, str(error))
        _LOG.log(
            logging.WARNING if failures == 1 else logging.DEBUG,
            "cannot watch the cluster",
            extra={"kind": kind, "error": str(error)},
        )
        await asyncio.sleep(delay_s(failures, asked_s=error.retry_after_s))

    def _lose(self, kind: str, error: str) -> None:
        self._synced.discard(kind)
        self.error = error
        self.on_change()


def _went_back(before: str, now: str) -> bool:
    """Whether a later event has an earlier version; versions are whole numbers."""
    return before.isdigit() and now.isdigit() and int(now) < int(before)
