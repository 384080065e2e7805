"""Keeps the state in a database: each method is one transaction."""

from collections.abc import Sequence

from headrace.control.access.credentials import Credential, CredentialKind, Principal
from headrace.control.access.trail import Change, Entry, Head
from headrace.control.desired import DesiredState
from headrace.control.state import (
    access_rows,
    desired_rows,
    journal_rows,
    quota_rows,
    reward_rows,
    trail_rows,
)
from headrace.control.state.alert_rows import SqlAlerts
from headrace.control.state.database import Database
from headrace.control.state.job_rows import SqlJobs
from headrace.control.state.retention import Bounds, forget
from headrace.control.store import (
    Assignment,
    EndpointGeneration,
    Event,
    Feedback,
    QuotaUse,
    RolloutRecord,
    UnitBatch,
    UnitReward,
)
from headrace.rollout.readings import RewardSums, UnitTally


class SqlStore:
    """A `Store` in SQLite or Postgres, opened by `open_store`. Safe to use from several threads."""

    def __init__(self, database: Database, *, bounds: Bounds) -> None:
        self._database = database
        self._bounds = bounds
        self.jobs = SqlJobs(database)
        self.alerts = SqlAlerts(database)

    def load(self) -> DesiredState:
        """The newest state; generation 0 if there was none."""
        with self._database.reading("read the desired state") as connection:
            return desired_rows.load_state(connection)

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

        Rollouts, events and what goes into the trail are stored with it or not at all; the rollouts
        as stored.

        Raises:
            ConflictError: Somebody else saved first, or an endpoint's generation is not new.
            InvalidArgumentError: Something in it JSON cannot say.
            FailedPreconditionError: It cannot be stored; the old state stands.
        """
        with self._database.writing("store the desired state") as connection:
            desired_rows.save_state(connection, state, at=at, reason=reason, actor=actor)
            stored = [journal_rows.save_rollout(connection, record) for record in rollouts]
            journal_rows.add_events(connection, events)
            trail_rows.add_changes(connection, changes)
            return stored

    def history(self, endpoint: str, *, limit: int = 100) -> list[EndpointGeneration]:
        """An endpoint's generations, the newest first."""
        with self._database.reading("read the history") as connection:
            return desired_rows.read_history(connection, endpoint, limit)

    def generation(self, endpoint: str, generation: int) -> EndpointGeneration | None:
        """One generation of an endpoint."""
        with self._database.reading("read the history") as connection:
            return desired_rows.read_generation(connection, endpoint, generation)

    def last_generations(self) -> dict[str, int]:
        """The newest generation of each endpoint that ever was, those that are gone included."""
        with self._database.reading("read the history") as connection:
            return desired_rows.last_generations(connection)

    def rollouts(self, endpoint: str = "", *, limit: int = 100) -> list[RolloutRecord]:
        """Rollouts, the newest first; of all endpoints if `endpoint` is empty."""
        with self._database.reading("read the rollouts") as connection:
            return journal_rows.read_rollouts(connection, endpoint, limit)

    def rollout(self, rollout: str) -> RolloutRecord | None:
        """The rollout of this id."""
        with self._database.reading("read a rollout") as connection:
            return journal_rows.read_rollout(connection, rollout)

    def newest_rollouts(self) -> dict[str, RolloutRecord]:
        """The newest rollout of each endpoint that had one."""
        with self._database.reading("read the rollouts") as connection:
            return journal_rows.newest_rollouts(connection)

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
            InvalidArgumentError: The record has something that JSON cannot say.
            FailedPreconditionError: It cannot be stored; the old one stands.
        """
        with self._database.writing("store a rollout") as connection:
            stored = journal_rows.save_rollout(connection, record)
            journal_rows.add_events(connection, events)
            trail_rows.add_changes(connection, changes)
            return stored

    def add_events(self, events: Sequence[Event]) -> list[Event]:
        """Append events; the same with their ids."""
        with self._database.writing("store events") as connection:
            return journal_rows.add_events(connection, events)

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
        with self._database.reading("read events") as connection:
            return journal_rows.read_events(
                connection, endpoint=endpoint, kind=kind, after=after, limit=limit, newest=newest
            )

    def add_assignments(self, assignments: Sequence[Assignment]) -> None:
        """Remember who answered; a request id that is known already stays as it is."""
        with self._database.writing("store assignments") as connection:
            reward_rows.add_assignments(connection, assignments)

    def unit_tally(self, rollout: str) -> UnitTally:
        """What was counted of a rollout's callers."""
        with self._database.reading("read callers") as connection:
            return reward_rows.read_tally(connection, rollout)

    def add_units(self, rollout: str, batch: UnitBatch) -> UnitTally:
        """Count answers by caller, and remember how far they were read, or neither; the sums."""
        with self._database.writing("store callers") as connection:
            return reward_rows.add_units(connection, rollout, batch)

    def add_feedback(
        self, *feedback: Feedback, endpoints: frozenset[str] | None = None
    ) -> list[str]:
        """Take rewards, all or none: `taken`, `duplicate`, `waiting` or `unknown` of each.

        Raises:
            InvalidArgumentError: A reward is beyond `REWARD_LIMIT`, or no number.
        """
        with self._database.writing("store feedback") as connection:
            return reward_rows.add_feedback(connection, feedback, endpoints)

    def rewards(self, rollout: str) -> list[UnitReward]:
        """What each unit earned in a rollout, in the order of units."""
        with self._database.reading("read rewards") as connection:
            return reward_rows.read_rewards(connection, rollout)

    def reward_sums(self, rollout: str) -> dict[str, RewardSums]:
        """The same by arm: how many units, the mean of their means, the squares around it."""
        with self._database.reading("read rewards") as connection:
            return reward_rows.read_reward_sums(connection, rollout)

    def add_quotas(self, uses: Sequence[QuotaUse]) -> list[QuotaUse]:
        """Add to what each subject has used of its day; what it has used then."""
        with self._database.writing("store used quotas") as connection:
            return quota_rows.add_quotas(connection, uses)

    def quotas(self, day: str) -> list[QuotaUse]:
        """What was used of a day, by subject."""
        with self._database.reading("read used quotas") as connection:
            return quota_rows.read_quotas(connection, day)

    def add_credential(self, credential: Credential, *, changes: Sequence[Change] = ()) -> None:
        """Keep a new credential.

        Raises:
            AlreadyExistsError: Its id or its hash is taken.
        """
        with self._database.writing("store a credential") as connection:
            access_rows.add_credential(connection, credential)
            trail_rows.add_changes(connection, changes)

    def credentials(self, kind: CredentialKind, owner: str | None = None) -> list[Credential]:
        """Credentials of a kind by age; all owners' if `owner` is None."""
        with self._database.reading("read credentials") as connection:
            return access_rows.read_credentials(connection, kind, owner)

    def credential(self, id_: str) -> Credential | None:
        """The credential of this id."""
        with self._database.reading("read a credential") as connection:
            return access_rows.read_credential(connection, id_)

    def credential_by_hash(self, hash_: str) -> Credential | None:
        """The credential of this hash."""
        with self._database.reading("read a credential") as connection:
            return access_rows.read_credential_by_hash(connection, hash_)

    def revoke_credential(
        self, id_: str, *, at: float, changes: Sequence[Change] = ()
    ) -> Credential:
        """Make a credential invalid from `at` on; as stored.

        Raises:
            NotFoundError: There is none of this id.
        """
        with self._database.writing("revoke a credential") as connection:
            revoked = access_rows.revoke_credential(connection, id_, at)
            trail_rows.add_changes(connection, changes)
            return revoked

    def renew_credential(self, id_: str, *, expires: float) -> None:
        """Let a credential that is not revoked expire at another time."""
        with self._database.writing("renew a credential") as connection:
            access_rows.renew_credential(connection, id_, expires)

    def save_principal(self, principal: Principal, *, changes: Sequence[Change] = ()) -> None:
        """Add a principal, or replace the one of this name."""
        with self._database.writing("store a principal") as connection:
            access_rows.save_principal(connection, principal)
            trail_rows.add_changes(connection, changes)

    def principals(self) -> list[Principal]:
        """All principals by name."""
        with self._database.reading("read principals") as connection:
            return access_rows.read_principals(connection)

    def principal(self, name: str) -> Principal | None:
        """The principal of this name."""
        with self._database.reading("read a principal") as connection:
            return access_rows.read_principal(connection, name)

    def add_changes(self, changes: Sequence[Change]) -> None:
        """Append to the trail what is kept elsewhere than in this database."""
        with self._database.writing("write the trail") as connection:
            trail_rows.add_changes(connection, changes)

    def trail(self, *, after: int = 0, limit: int = 1000, newest: bool = False) -> list[Entry]:
        """Entries with an id above `after`, in order; with `newest` the last `limit` of them."""
        with self._database.reading("read the trail") as connection:
            return trail_rows.read_trail(connection, after=after, limit=limit, newest=newest)

    def trail_head(self) -> Head:
        """Where the trail ends."""
        with self._database.reading("read the trail") as connection:
            return trail_rows.read_head(connection)

    def forget_before(self, at: float) -> None:
        """Drop what is older than `at` and waits for nothing, and what is beyond its bound."""
        with self._database.writing("forget old entries") as connection:
            forget(connection, self._bounds, before=at)

    def close(self) -> None:
        """Let go of the database."""
        self._database.close()
