"""Status of a stream worker for its supervisor, and the exit status that says why it ended."""

from enum import StrEnum
from typing import Final

import msgspec

EXIT_SETTINGS: Final = 2
"""The settings cannot work, or do not fit the model or the broker."""
EXIT_CANNOT_LOAD: Final = 3
"""The model cannot be loaded, or the endpoint not be asked what it takes."""
EXIT_CANNOT_LISTEN: Final = 4
"""An address cannot be had."""
EXIT_CANNOT_JOIN: Final = 5
"""The broker refuses, for good."""
EXIT_REPLACED: Final = 6
"""Another member has this one's name: two workers of one stream were given the same."""
EXIT_STOPPED_BY_RECORD: Final = 7
"""By its policy the stream stopped before a record that has no answer."""


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


class StreamStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A worker at one moment."""

    stream: str
    member: str
    state: State = State.STARTING
    places: list[PlaceStatus] = []
    waiting: int = 0
    """Records that were read and are in no batch yet."""
    in_flight: int = 0
    """Records that are in batches."""
    trouble: str = ""
    """Why nothing comes or goes now."""
    last_error: str = ""
    at: float = 0.0
    """When lag was taken, in Unix time."""
    read: int = 0
    answered: int = 0
    dead_letters: int = 0
    without_answer: int = 0
    retries: int = 0
    still_s: float = 0.0
    """For how long the thread that talks to the broker has not come round; what the rest says is
    about as old."""
    unassigned_s: float = 0.0
    """For how long it has had no partition."""
    lacks_topic: bool = False
    """It is no member, as a topic that it reads does not exist; `trouble` names it."""
    row_problem: str = ""
    """How a row's answer depended on the others that were scored with it."""
