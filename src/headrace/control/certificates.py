"""Which certificates are in force, until when, and who brings new ones there? Without a restart."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from headrace.control.faults import LOOP, Faults
from headrace.control.pem_files import Pem, PemFiles, PemWatch
from headrace.control.state.records import Event
from headrace.core import Clock, FailedPreconditionError, HeadraceError
from headrace.observe.metrics import Family, gauge

_LOG: Final = logging.getLogger("headrace.control")
_LOOK_S: Final = 0.2
_DAY_S: Final = 86_400.0
_AGAIN_S: Final = 5.0
"""After which what could not be brought into force, for reasons of its receiver, is tried again."""

Deliver = Callable[[Pem], Awaitable[None]]
Emit = Callable[[Sequence[Event]], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificateStatus:
    """One certificate in force, or authorities. `expires_at`: seconds since 1970.

    `problem`: why what its files hold now is not in force. Nothing is in force where `fingerprint`
    is empty.
    """

    name: str
    what: str
    file: str
    subject: str = ""
    names: tuple[str, ...] = ()
    fingerprint: str = ""
    expires_at: float | None = None
    days_left: float | None = None
    problem: str = ""


@dataclass(slots=True, kw_only=True)
class _Kept:
    watch: PemWatch
    deliver: Deliver
    failed_at: float | None = None


@dataclass(slots=True, kw_only=True)
class Certificates:
    """Looks at files of certificates until cancelled, and delivers what is new and good."""

    clock: Clock
    emit: Emit = field(default=lambda _events: _nothing())
    on_first: Callable[[str], Awaitable[None]] = field(default=lambda _name: _nothing())
    """Called when there is something good of a name of which there was none when it was kept."""
    faults: Faults = field(default_factory=Faults)
    _kept: dict[str, _Kept] = field(default_factory=dict)

    def keep(self, watch: PemWatch, deliver: Deliver) -> None:
        """Watch these files too, in the place of others of that name."""
        self._kept[watch.files.name] = _Kept(watch=watch, deliver=deliver)

    def open(self, files: PemFiles, load: Callable[[Pem], None]) -> None:
        """Call `load` with what the files hold, and in a thread whenever they are replaced.

        Blocking.

        Raises:
            FailedPreconditionError: They cannot be used now.
        """
        watch = PemWatch(files=files)
        found = watch.look(self.clock.now())
        if found is None:
            raise FailedPreconditionError(watch.problem)
        load(found)
        watch.take(found)
        self.keep(watch, lambda pem: asyncio.to_thread(load, pem))

    def drop(self, name: str) -> None:
        """Watch these files no longer."""
        self._kept.pop(name, None)

    def names(self) -> list[str]:
        """Of everything that is watched."""
        return list(self._kept)

    def watches(self, name: str) -> bool:
        """Whether there are files of this name."""
        return name in self._kept

    def is_in_force(self, name: str) -> bool:
        """Whether there is something good of this name."""
        kept = self._kept.get(name)
        return kept is not None and kept.watch.pem is not None

    def problem(self, name: str) -> str:
        """Why the newest of this name is not in force; empty if it is."""
        kept = self._kept.get(name)
        return "" if kept is None else kept.watch.problem

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(_LOOK_S)
            self.faults.keep_only("certificate", self._kept)
            with self.faults.contain(LOOP, "certificates"):
                for name in await asyncio.to_thread(self._due, dict(self._kept)):
                    with self.faults.contain("certificate", name):
                        was_in_force = self.is_in_force(name)
                        await self.look(name)
                        if self.is_in_force(name) and not was_in_force:
                            await self.on_first(name)

    def _due(self, kept: Mapping[str, _Kept]) -> list[str]:
        """Those to look at; all are asked for in one thread, as a slow disk must stop nothing."""
        return [
            name for name, one in kept.items() if one.failed_at is not None or one.watch.is_due()
        ]

    async def look(self, name: str) -> None:
        """Look at one now."""
        kept = self._kept.get(name)
        if kept is None:
            return
        watch, now = kept.watch, self.clock.now()
        if kept.failed_at is not None and self.clock.monotonic() - kept.failed_at >= _AGAIN_S:
            kept.failed_at = None
            watch.again()
        found = await asyncio.to_thread(watch.look, now)
        if found is not None:
            await self._deliver(kept, found)
        elif complaint := watch.complaint(now):
            await self._tell(watch.files, "CertificateRefused", f"{complaint}; {_kept_text(watch)}")

    async def _deliver(self, kept: _Kept, found: Pem) -> None:
        watch = kept.watch
        try:
            await kept.deliver(found)
        except (HeadraceError, OSError) as error:  # OSError: the disk is full
            watch.refuse(str(error), self.clock.now())
            kept.failed_at = self.clock.monotonic()
            return
        is_first = watch.pem is None
        watch.take(found)
        kept.failed_at = None
        if not is_first:
            until = f"for {found.facts.subject or 'nobody'}, {_days(found, self.clock.now())}"
            await self._tell(
                watch.files, "CertificateReplaced", f"{watch.files.what} was replaced: {until}"
            )

    async def _tell(self, files: PemFiles, reason: str, message: str) -> None:
        is_bad = reason == "CertificateRefused"
        _LOG.log(logging.ERROR if is_bad else logging.INFO, "%s", message)
        event = Event(
            at=self.clock.now(),
            endpoint="",
            kind="gateway",
            reason=reason,
            message=message,
            data={"certificate": files.name, "file": str(files.certificate_file)},
        )
        try:
            await self.emit([event])
        except HeadraceError as error:
            _LOG.error("cannot write an event", extra={"error": str(error)})

    def statuses(self) -> tuple[CertificateStatus, ...]:
        """All of them, now."""
        now = self.clock.now()
        return tuple(_status(kept.watch, now) for kept in self._kept.values())

    def families(self) -> list[Family]:
        """How long each lasts, as metrics."""
        left, refused = [], []
        for status in self.statuses():
            labels = (("certificate", status.name),)
            refused.append((labels, bool(status.problem)))
            if status.days_left is not None:
                left.append((labels, status.days_left * _DAY_S))
        return [
            gauge("headrace_control_certificate_left_seconds", "Until it expires.", left),
            gauge(
                "headrace_control_certificate_refused",
                "1 while its files hold what is no good.",
                refused,
            ),
        ]


async def _nothing() -> None:
    """Nobody waits for it."""


def _status(watch: PemWatch, now: float) -> CertificateStatus:
    files, pem = watch.files, watch.pem
    if pem is None:
        return CertificateStatus(
            name=files.name,
            what=files.what,
            file=str(files.certificate_file),
            problem=watch.problem,
        )
    facts = pem.facts
    return CertificateStatus(
        name=files.name,
        what=files.what,
        file=str(files.certificate_file),
        subject=facts.subject,
        names=facts.names,
        fingerprint=facts.fingerprint,
        expires_at=facts.not_after,
        days_left=round((facts.not_after - now) / _DAY_S, 2),
        problem=watch.problem or _expired(facts.not_after, now),
    )


def _expired(not_after: float, now: float) -> str:
    return "" if now <= not_after else f"it expired {(now - not_after) / _DAY_S:.1f} days ago"


def _kept_text(watch: PemWatch) -> str:
    return "the one before stays in force" if watch.pem is not None else "nothing is in force"


def _days(pem: Pem, now: float) -> str:
    return f"{(pem.facts.not_after - now) / _DAY_S:.0f} days left"
