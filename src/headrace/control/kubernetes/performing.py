"""How are actions carried out on the cluster, and what follows when it refuses?"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final, assert_never

from headrace.control.kubernetes.actions import (
    DELETION_COST,
    Action,
    ApplyObject,
    DeleteObject,
    MarkPod,
    ScaleDeployment,
    YieldReplicas,
    fixed,
    foreign,
)
from headrace.control.kubernetes.api import ClusterApi
from headrace.control.kubernetes.cluster import Cluster, Key, is_ours, key_of
from headrace.control.kubernetes.compare import differences
from headrace.control.kubernetes.failures import (
    ApiUnavailableError,
    ObjectChangedError,
    ObjectFailedError,
    ObjectFixedError,
    ObjectMissingError,
    delay_s,
)
from headrace.control.kubernetes.names import Object, Place
from headrace.control.plan import PublishRoutes
from headrace.core import Clock, HeadraceError

_LOG: Final = logging.getLogger("headrace.control")
_AT_ONCE: Final = 8
_BLOCKED_S: Final = 20.0
_MANY: Final = 5
"""Failures in a row after which one is no accident."""
_HANDOVER: Final = "headrace-handover"
_SPARED: Final = frozenset(
    {"ConfigMap", "PodDisruptionBudget", "HorizontalPodAutoscaler", "ScaledObject"}
)
"""Kinds whose objects may be missing for a moment: no pod ends by it, and no request is lost."""


@dataclass(slots=True, kw_only=True)
class Performer:
    """Acts on the cluster, several things at once; what it learns goes into `cluster`.

    Fields of ours are taken back by force, for they are ours; an object that we did not make is
    never forced, nor deleted. `may_act` is asked before each request. `blocked`: what cannot be
    made, why, and until when that is believed; `mutated`: places that the cluster changes whenever
    we apply. `on_restored`: called when versions of objects are earlier ones than before.
    """

    api: ClusterApi
    cluster: Cluster
    place: Place
    clock: Clock
    may_act: Callable[[], bool]
    blocked: dict[Key, tuple[str, float]] = field(default_factory=dict)
    mutated: dict[Key, frozenset[str]] = field(default_factory=dict)
    failures: int = 0
    error: str = ""
    on_restored: Callable[[], None] = lambda: None
    _failing: dict[Key, tuple[int, float]] = field(default_factory=dict)
    _asked_s: float | None = None

    async def perform(self, actions: Iterable[Action]) -> float | None:
        """Act; seconds to wait before the next try if something failed."""
        self._asked_s = None
        limit = asyncio.Semaphore(_AT_ONCE)
        done = await asyncio.gather(*(self._guarded(action, limit) for action in actions))
        if all(done):
            self.failures = 0
            self.error = ""
            return None
        self.failures += 1
        return delay_s(self.failures, asked_s=self._asked_s)

    def believed(self) -> dict[Key, str]:
        """What is blocked now."""
        now = self.clock.monotonic()
        self.blocked = {key: told for key, told in self.blocked.items() if told[1] > now}
        return {key: reason for key, (reason, _) in self.blocked.items()}

    def may_try(self, action: Action) -> bool:
        """Whether it is time to try this: what failed by itself has to wait a while."""
        _, until = self._failing.get(_key(action), (0, 0.0))
        return until <= self.clock.monotonic()

    def due_at(self) -> float | None:
        """When what is blocked is tried again (monotonic); None if nothing is."""
        now = self.clock.monotonic()
        times = [until for _, until in self.blocked.values()]
        times += [until for _, until in self._failing.values() if until > now]
        return min(times, default=None)

    async def _guarded(self, action: Action, limit: asyncio.Semaphore) -> bool:
        async with limit:
            if not self.may_act():
                return False
            try:
                await self._act(action)
            except ObjectChangedError as error:
                _LOG.info("cluster changed meanwhile", extra={"error": str(error)})
                await self._look_again(action)
                return False
            except ObjectFixedError as error:
                self._note(error)
                return await self._make_anew(_key(action), error)
            except ObjectFailedError as error:
                self._note(error)
                self._postpone(_key(action), str(error))
                return True  # and holds up nothing else
            except ApiUnavailableError as error:
                self._note(error)
                self._asked_s = max(self._asked_s or 0.0, error.retry_after_s or 0.0) or None
                return False
            except HeadraceError as error:
                self._note(error)
                self._block(_key(action), str(error))
            self._failing.pop(_key(action), None)
        return True

    async def _act(self, action: Action) -> None:
        match action:
            case ApplyObject(wanted=wanted, why=why, is_new=is_new):
                if is_new and not await self._is_free(key_of(wanted)):
                    return
                await self._apply(wanted, why)
            case YieldReplicas(wanted=wanted, replicas=replicas):
                await self.api.apply(_count(wanted, replicas), force=True, manager=_HANDOVER)
                await self._apply(wanted, "another scales now")
            case ScaleDeployment(found=found, replicas=replicas):
                # By another manager, as an apply of ours without all the rest would take that away.
                told = _count(found, replicas)
                self._log("scaling", found, f"to {replicas}; its pods are replaced later")
                await self._learn(await self.api.apply(told, force=True, manager=_HANDOVER))
            case MarkPod(name=name, uid=uid, cost=cost):
                await self._mark(name, uid, cost)
            case DeleteObject(found=found, why=why):
                self._log("deleting", found, why)
                await self.api.delete(found)
                self.cluster.drop(found)
            case PublishRoutes():
                raise AssertionError("routes are the gateway's")
            case _:
                assert_never(action)

    async def _is_free(self, key: Key) -> bool:
        """Whether nobody has this name; who has it is noted."""
        found = await self.api.get(*key)
        if found is None:
            return True
        if is_ours(found, self.place):
            self.cluster.put(found)  # the watch will tell the same soon
        else:
            self._block(key, foreign(key))
        return False

    async def _apply(self, wanted: Object, why: str) -> None:
        """Say what is ours in the very object that we know, or in a new one."""
        key = key_of(wanted)
        known = self.cluster.find(*key)
        self._log("applying", wanted, why)
        told = wanted
        if known is not None:
            # Another object of this name is a conflict, and not taken over.
            metadata = {**wanted["metadata"], "uid": known["metadata"]["uid"]}
            told = {**wanted, "metadata": metadata}
        result = await self.api.apply(told, force=known is not None)
        await self._learn(result)
        self._note_mutations(key, differences(wanted, result))

    async def _learn(self, result: Object) -> None:
        """Take in how an object is after what we wrote."""
        if self.cluster.knows_newer(result):
            # Others may have written since. If it still is an earlier version, time went back, as
            # it does when a database is restored: all that is known may be wrong.
            found = await self.api.get(*key_of(result))
            if found is not None and self.cluster.knows_newer(found):
                self.on_restored()
                return
            result = found or result
        self.cluster.put(result)

    def _note_mutations(self, key: Key, places: list[str]) -> None:
        if not places:
            self.mutated.pop(key, None)
            return
        if self.mutated.get(key) != frozenset(places):
            extra = {"object": " ".join(key), "places": ", ".join(places)}
            _LOG.warning("the cluster changes what we apply; that is left so", extra=extra)
        self.mutated[key] = frozenset(places)

    async def _mark(self, name: str, uid: str, cost: int) -> None:
        change = {"metadata": {"uid": uid, "annotations": {DELETION_COST: str(cost)}}}
        try:
            self.cluster.put(await self.api.merge("Pod", name, change))
        except ObjectMissingError:
            return  # it is gone already

    async def _look_again(self, action: Action) -> None:
        """Learn how an object is that is not as we thought."""
        key = _key(action)
        known = self.cluster.find(*key)
        if known is None or key[0] == "Pod":
            return  # a watch says so
        try:
            found = await self.api.get(*key)
        except HeadraceError as error:
            self._note(error)
            return
        if found is None or found["metadata"]["uid"] != known["metadata"]["uid"]:
            self.cluster.drop(known)
        elif found is not None:
            self.cluster.put(found)

    async def _make_anew(self, key: Key, error: ObjectFixedError) -> bool:
        """Take away what cannot be changed and nobody misses for a moment; tell of all else."""
        known = self.cluster.find(*key)
        if known is None or key[0] not in _SPARED or not is_ours(known, self.place):
            self._block(key, f"{error}; {fixed(key)}")
            return True
        self._log("deleting", known, "it cannot be changed, and is made anew")
        try:
            await self.api.delete(known)
        except HeadraceError as refused:
            self._note(refused)
            self._block(key, str(refused))
            return True
        self.cluster.drop(known)
        return True  # the next step makes it

    def _postpone(self, key: Key, error: str) -> None:
        """Try this later, each time later; told of once it is no accident any more."""
        failures, _ = self._failing.get(key, (0, 0.0))
        until = self.clock.monotonic() + delay_s(failures + 1)
        self._failing[key] = failures + 1, until
        if failures + 1 >= _MANY:
            self.blocked[key] = error, until

    def _block(self, key: Key, reason: str) -> None:
        self.blocked[key] = (reason, self.clock.monotonic() + _BLOCKED_S)

    def _note(self, error: HeadraceError) -> None:
        if str(error) != self.error:
            _LOG.error("cannot act on the cluster", extra={"error": str(error)})
        self.error = str(error)

    def _log(self, doing: str, one: Object, why: str) -> None:
        extra = {"kind": one["kind"], "object": one["metadata"]["name"], "why": why}
        _LOG.info("%s object", doing, extra=extra)


def _key(action: Action) -> Key:
    match action:
        case ApplyObject(wanted=one) | YieldReplicas(wanted=one):
            return key_of(one)
        case ScaleDeployment(found=one) | DeleteObject(found=one):
            return key_of(one)
        case MarkPod(name=name):
            return "Pod", name
        case PublishRoutes():
            raise AssertionError("routes are the gateway's")
        case _:
            assert_never(action)


def _count(deployment: Object, replicas: int) -> Object:
    metadata = deployment["metadata"]
    named = {key: metadata[key] for key in ("name", "namespace", "uid") if key in metadata}
    return {
        "apiVersion": deployment["apiVersion"],
        "kind": deployment["kind"],
        "metadata": named,
        "spec": {"replicas": replicas},
    }
