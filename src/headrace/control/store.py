"""What must survive, and who may write it? `headrace.control.state` keeps it."""

import fcntl
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from headrace.control.access.credentials import Credential, CredentialKind, Principal
from headrace.control.access.trail import Change, Entry, Head
from headrace.control.alert_records import AlertStore
from headrace.control.desired import DesiredEndpoint, DesiredState
from headrace.control.job_records import JobStore
from headrace.core import FailedPreconditionError
from headrace.rollout.readings import RewardSums, UnitTally
from headrace.rollout.state import RolloutState


class EndpointGeneration(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of an endpoint's history.

    `document`: the endpoint's part of the spec, None where it was removed. `endpoint`: the same
    with every model pinned. `at`: seconds since 1970. `reason`: why it came to be (`applied`,
    `undone to generation 3`, `rollout r4 started`). `actor`: who asked.
    """

    name: str
    generation: int
    at: float
    reason: str
    actor: str = ""
    document: dict[str, Any] | None = None
    endpoint: DesiredEndpoint | None = None


class RolloutRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One rollout: from what to what, and where it is.

    `evidence` is what the metrics have counted so far, as `headrace.rollout` encodes it. `revision`
    grows by one with every change: a writer that read an older one loses.
    """

    id: str
    endpoint: str
    created: float
    source: DesiredEndpoint
    target: DesiredEndpoint
    state: RolloutState
    actor: str = ""
    evidence: bytes = b""
    revision: int = 0


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to an endpoint; never changed once it is written.

    `kind`: `spec`, `rollout`, `scale`, `replica`, `gateway`, `cluster`, `stream`, `fault`.
    `reason`: one CamelCase word for programs. `data`: the numbers that decided it. `id` is given by
    the store and grows.
    """

    at: float
    endpoint: str
    kind: str
    reason: str
    message: str
    generation: int = 0
    rollout: str = ""
    actor: str = ""
    data: dict[str, Any] = {}
    id: int = 0


class Assignment(msgspec.Struct, frozen=True, kw_only=True):
    """Which arm answered a request, so that feedback finds it. `unit`: the sticky key's digest."""

    request_id: str
    rollout: str
    arm: str
    unit: str
    at: float


class Feedback(msgspec.Struct, frozen=True, kw_only=True):
    """What one answer earned."""

    request_id: str
    reward: float
    at: float


class UnitBatch(msgspec.Struct, frozen=True, kw_only=True):
    """Answers that were read at once: how many of each caller, at the candidate's share in force.

    `of_candidate`: callers whose first answer here was the candidate's. `positions`: how far the
    answers of each replica were read now: its process, and the cursor.
    """

    share: float = 0.0
    requests: dict[str, int] = {}
    of_candidate: frozenset[str] = frozenset()
    positions: dict[str, tuple[int, int]] = {}


class UnitReward(msgspec.Struct, frozen=True, kw_only=True):
    """All rewards of one unit in a rollout: a user, or a request where assignment is random."""

    unit: str
    arm: str
    count: int
    total: float


class QuotaUse(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests a subject has used of a day (`2026-11-25`, UTC)."""

    day: str
    subject: str
    used: int


class Store(Protocol):
    """Keeps what must survive: desired state with its history, rollouts, events, rewards, access.

    Every method is blocking and atomic, and is called from one thread at a time; other processes
    may write to the same database.
    """

    @property
    def jobs(self) -> JobStore:
        """Scheduled jobs and their runs, in the same database."""

    @property
    def alerts(self) -> AlertStore:
        """Alerts, what receivers were told, and silences, in the same database."""

    def load(self) -> DesiredState:
        """The newest state; generation 0 if there was none.

        Raises:
            FailedPreconditionError: What is stored cannot be read.
        """

    def save(
        self,
        state: DesiredState,
        *,
        at: float,
        reason: str,
        actor: str = "",
        rollouts: Sequence[RolloutRecord] = (),
        events: Sequence[Event] = (),
        changes: Sequence[Change] = (),
    ) -> list[RolloutRecord]:
        """Replace the state; each endpoint whose `generation` is new gets an entry in its history.

        An endpoint that is gone gets one without a document. What belongs to the change is stored
        in the same transaction, or not at all: rollouts that it begins or ends, as `save_rollout`
        does it, events, and what goes into the trail. The rollouts as stored.

        Raises:
            ConflictError: `state.generation` is not one more than the stored one, an endpoint's
                generation is not new, or a rollout was changed by somebody else.
            InvalidArgumentError: Something could not be read again.
            FailedPreconditionError: It cannot be stored; the old state stands.
        """

    def history(self, endpoint: str, *, limit: int = 100) -> list[EndpointGeneration]:
        """An endpoint's generations, the newest first."""

    def generation(self, endpoint: str, generation: int) -> EndpointGeneration | None:
        """One generation of an endpoint."""

    def last_generations(self) -> dict[str, int]:
        """The newest generation of each endpoint that ever was, those that are gone included.

        The next one of an endpoint, one that comes back too, is one higher.
        """

    def rollouts(self, endpoint: str = "", *, limit: int = 100) -> list[RolloutRecord]:
        """Rollouts, the newest first; of all endpoints if `endpoint` is empty."""

    def newest_rollouts(self) -> dict[str, RolloutRecord]:
        """The newest rollout of each endpoint that had one: what a start goes on with."""

    def rollout(self, rollout: str) -> RolloutRecord | None:
        """The rollout of this id."""

    def save_rollout(
        self,
        record: RolloutRecord,
        *,
        events: Sequence[Event] = (),
        changes: Sequence[Change] = (),
    ) -> RolloutRecord:
        """Add or replace a rollout, with events and the trail in the same transaction; as stored.

        Raises:
            ConflictError: `record.revision` is not the stored one (0 for a new rollout).
        """

    def add_events(self, events: Sequence[Event]) -> list[Event]:
        """Append events; the same with their ids."""

    def events(
        self,
        *,
        endpoint: str = "",
        kind: str = "",
        after: int = 0,
        limit: int = 1000,
        newest: bool = False,
    ) -> list[Event]:
        """Events with an id above `after`, in order; with `newest` the last `limit` of them."""

    def add_assignments(self, assignments: Sequence[Assignment]) -> None:
        """Remember who answered; a request id that is known already stays as it is."""

    def unit_tally(self, rollout: str) -> UnitTally:
        """What was counted of a rollout's callers."""

    def add_units(self, rollout: str, batch: UnitBatch) -> UnitTally:
        """Count answers by caller, and remember how far they were read, or neither; the sums."""

    def add_feedback(
        self, *feedback: Feedback, endpoints: frozenset[str] | None = None
    ) -> list[str]:
        """Take rewards, all or none: `taken`, `duplicate`, `waiting` or `unknown` of each.

        The first one counts. One that waits for its assignment is counted as soon as that comes.
        With `endpoints`, only answers of these that are known already earn it.

        Raises:
            InvalidArgumentError: A reward is beyond `REWARD_LIMIT`, or no number.
        """

    def rewards(self, rollout: str) -> list[UnitReward]:
        """What each unit earned in a rollout."""

    def reward_sums(self, rollout: str) -> dict[str, RewardSums]:
        """The same by arm: how many units, the mean of their means, the squares around it."""

    def add_quotas(self, uses: Sequence[QuotaUse]) -> list[QuotaUse]:
        """Add to what each subject has used of its day; what it has used then.

        Several control planes may add to one: each learns of the others by the answer.
        """

    def quotas(self, day: str) -> list[QuotaUse]:
        """What was used of a day, by subject."""

    def add_credential(self, credential: Credential, *, changes: Sequence[Change] = ()) -> None:
        """Keep a new credential, and enter it in the trail in the same transaction.

        Raises:
            AlreadyExistsError: Its id or its hash is taken.
        """

    def credentials(self, kind: CredentialKind, owner: str | None = None) -> list[Credential]:
        """Credentials of a kind by age, invalid ones too; all owners' if `owner` is None."""

    def credential(self, id_: str) -> Credential | None:
        """The credential of this id, whether it is valid or not."""

    def credential_by_hash(self, hash_: str) -> Credential | None:
        """The credential of this hash, whether it is valid or not."""

    def revoke_credential(
        self, id_: str, *, at: float, changes: Sequence[Change] = ()
    ) -> Credential:
        """Make a credential invalid from `at` on; as stored. One that is revoked stays as it is.

        Raises:
            NotFoundError: There is none of this id.
        """

    def renew_credential(self, id_: str, *, expires: float) -> None:
        """Let a credential that is not revoked expire at another time."""

    def save_principal(self, principal: Principal, *, changes: Sequence[Change] = ()) -> None:
        """Add a principal, or replace the one of this name."""

    def principals(self) -> list[Principal]:
        """All principals by name."""

    def principal(self, name: str) -> Principal | None:
        """The principal of this name."""

    def add_changes(self, changes: Sequence[Change]) -> None:
        """Append to the trail what is kept elsewhere than in this store."""

    def trail(self, *, after: int = 0, limit: int = 1000, newest: bool = False) -> list[Entry]:
        """Entries with an id above `after`, in order; with `newest` the last `limit` of them."""

    def trail_head(self) -> Head:
        """Where the trail ends."""

    def forget_before(self, at: float) -> None:
        """Drop assignments and waiting feedback older than `at`, and events beyond their bound.

        Quotas of days and silences that ended before `at` go too.
        Sessions that have expired by then go too; the trail never does.
        """

    def close(self) -> None:
        """Let go of the database."""


class HomeLock:
    """Makes sure that one home has one control plane; held until `release` or the process ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            FailedPreconditionError: Another control plane has it; the message names its pid.
        """
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
            os.close(descriptor)
            message = (
                f"a control plane already runs on {self._path.parent.parent} (pid {holder}); "
                "stop it with `headrace down`, or choose another --home"
            )
            raise FailedPreconditionError(message) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        self._descriptor = descriptor

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
