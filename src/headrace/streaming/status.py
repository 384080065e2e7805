"""What does a stream worker tell of itself?"""

from enum import StrEnum

import msgspec


class State(StrEnum):
    """What a worker is at."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    """It takes no records, and stays a member."""
    RETRYING = "retrying"
    """What scores, or the broker, is away: the stream waits for it."""
    RECONNECTING = "reconnecting"
    """It is no member of its group at the moment."""
    STOPPING = "stopping"
    STOPPED = "stopped"


class PlaceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One place that is this member's. Lag as in `records.Lag`; None where it is not known."""

    topic: str
    partition: int
    lag_records: int | None = None
    lag_s: float | None = None


class ArmStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What one of several versions did. As in `counters.ArmCounters`; `arm` as in `arms.Arm`."""

    arm: str
    version: str
    records: int = 0
    errors: int = 0
    skipped: int = 0
    compared: int = 0
    agreed: int = 0


class StreamStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A worker at one moment.

    `trouble`: why nothing comes or goes, now; `last_error`: the last one there was. `waiting` and
    `in_flight` are records. `at`: when lag was taken, in Unix time. `arms`: empty where only one
    version is asked. `still_s`: for how long the thread that talks to the broker has not come
    round; what the rest says is about as old. `unassigned_s`: for how long it has had no place.
    `row_problem`: how a row's answer depended on the others that were scored with it.
    `lacks_topic`: it is no member, as a topic that it reads does not exist; `trouble` names it.
    """

    stream: str
    member: str
    state: State = State.STARTING
    places: list[PlaceStatus] = []
    waiting: int = 0
    in_flight: int = 0
    trouble: str = ""
    last_error: str = ""
    at: float = 0.0
    read: int = 0
    answered: int = 0
    dead_letters: int = 0
    without_answer: int = 0
    retries: int = 0
    arms: list[ArmStatus] = []
    still_s: float = 0.0
    unassigned_s: float = 0.0
    lacks_topic: bool = False
    row_problem: str = ""
