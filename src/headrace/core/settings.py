"""What one replica is told at its start: the message from the control plane, as JSON.

Durations are seconds, sizes bytes. Defaults are the safe ones: every queue and every body has a
bound.
"""

from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from headrace.core.devices import Device
from headrace.core.feature_settings import FeatureLookup
from headrace.core.spec.part import DERIVED, FileOnly, SpecPart

DEFAULT_MAX_BODY_BYTES: Final = 64 << 20
DEFAULT_ROW_CHECK_RATIO: Final = 0.001


class NullPolicy(StrEnum):
    """What a null is in an input of floats: of a request, of a stream's record, of a job's row."""

    NAN = "nan"
    """A missing value: NaN."""
    ERROR = "error"
    """A mistake: the request, the record or the row is refused."""


class PaddingSpec(SpecPart, frozen=True, kw_only=True):
    """How requests of different lengths share a batch."""

    axis: Annotated[int, FileOnly(ge=1, le=16)] = 1
    """The variable axis; 1 is the first after the batch."""
    values: dict[str, float] = msgspec.field(default_factory=dict)
    """Pad value by input name; 0 for inputs not named."""
    max_ratio: Annotated[float, FileOnly(ge=1.0, le=100.0)] = 1.25
    """Padded over real size of a batch at most; 1.0 batches equal lengths only."""


class BatchingSpec(SpecPart, frozen=True, kw_only=True):
    """How each replica queues requests and runs them together."""

    max_batch_size: Annotated[int, FileOnly(ge=1, le=65536)] = 32
    """Unit: rows."""
    # 0 says, as in Triton, that axis 0 of a model's tensors is no batch; its replica is told so.
    max_queue_delay_s: Annotated[float, FileOnly(ge=0.0, le=60.0)] = 0.0
    """How long a batch may wait for company while the model is free. Unit: seconds."""
    max_queue_size: Annotated[int, FileOnly(ge=1, le=1_000_000)] = 1024
    """More waiting requests are refused. Unit: requests."""
    max_concurrent_runs: Annotated[int | None, FileOnly(ge=1, le=1024)] = None
    """Runs of the model at once; null for one per usable core."""
    intra_op_threads: Annotated[int | msgspec.UnsetType | None, FileOnly(ge=1, le=1024)] = (
        msgspec.UNSET
    )
    """Threads inside one run; null for one. Of no effect in a pool."""
    default_timeout_s: Annotated[float | None, DERIVED] = None
    """The endpoint's `timeout_s`: the deadline of a request that names none. Unit: seconds."""
    padding: PaddingSpec | None = None
    """Null batches equal lengths only, unless the model is known to mask."""
    # Fields that are UNSET are left out of messages: revisions of older state keep their ids.
    rows_independent: Annotated[
        bool | msgspec.UnsetType, Meta(extra_json_schema={"default": False})
    ] = msgspec.UNSET
    """Declares that the rows of a batch do not influence each other's answers. A model of which
    that is not proven is then batched, and checked while it serves; without it, such a model gets
    one request at a time."""
    row_check_ratio: Annotated[
        float | msgspec.UnsetType,
        FileOnly(ge=0.0, le=1.0),
        Meta(extra_json_schema={"default": DEFAULT_ROW_CHECK_RATIO}),
    ] = msgspec.UNSET
    """Share of the batches of which one row is run alone afterwards and compared, at most one a
    second and replica; only where rows are declared independent, or different lengths share a
    batch. 0 for none, where a second run has side effects."""


class SignedSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a replica proves before it loads its model.

    `statement` is what `key` has to have signed, and what the model has to be; key and signature
    are raw Ed25519 in base64.
    """

    statement: str
    key: str
    signature: str


class ReplicaSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One replica: which model, where it listens, how it behaves.

    `uds` (a socket path) and `port` (TCP, with `host`; 0 picks one) may both be set. `sha256` is
    checked before loading; empty skips the check. `grpc_port` also starts a `grpc.aio` server.
    `intra_op_threads`: threads inside one run; None lets the replica plan it. `signed`: the model
    is loaded only if this holds of it. `features`: requests name entities, whose features it looks
    up. `device`: what has to run it, one of `headrace.core.devices.Device`; left out for `auto`.
    With more than `max_connections` (or than there are descriptors for), those idle longest are
    closed.
    """

    model_name: str
    model_version: str
    path: str
    runtime: str = ""
    sha256: str = ""
    uds: str = ""
    host: str = "127.0.0.1"
    port: int | None = None
    grpc_port: int | None = None
    metrics_port: int | None = None
    batching: BatchingSpec = BatchingSpec()
    intra_op_threads: int | None = None
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    idle_timeout_s: float = 300.0
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    max_connections: int = 10_000
    drain_timeout_s: float = 30.0
    log_format: str = "text"
    replica: str = ""
    labels: dict[str, list[str]] = {}
    # Left out where it is not given: older settings, and the revisions made of them, stay the same.
    signed: SignedSettings | msgspec.UnsetType = msgspec.UNSET
    features: FeatureLookup | msgspec.UnsetType = msgspec.UNSET
    device: Device | msgspec.UnsetType = msgspec.UNSET
    nulls: NullPolicy | msgspec.UnsetType = msgspec.UNSET
    """Left out for `nan`."""
    formats: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    """Triton's name of the order of an image's axes by input, for the model's configuration."""


class ArtifactsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """From where a process has models that do not lie on its machine.

    `url`: a shared store of artifacts, as of `headrace models fetch`. `directory`: where what was
    fetched lies; the process may write there, and nobody else does.
    """

    url: str
    directory: str


class PoolReplicaSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One copy of a pool: a process that hosts many models and loads each when it is asked for.

    Which models these are is told later, over `uds`, or over `port` by whoever has the internal
    token; until then the copy is not ready. `name` is the pool's. `memory_bytes` bounds what loaded
    models take, as measured when each was tried; `max_loaded` their number. `load_timeout_s`: how
    long a request waits for its model, and a load may take. `max_waiting`: requests that wait for
    models to be loaded; more are refused. `artifacts`: models are told by paths
    `sha256/DIGEST/FILE` and fetched before their first load; left out where they lie on this
    machine. The rest as in `ReplicaSettings`.
    """

    name: str
    uds: str = ""
    host: str = "127.0.0.1"
    port: int | None = None
    metrics_port: int | None = None
    memory_bytes: int = 1 << 30
    max_loaded: int = 64
    load_timeout_s: float = 30.0
    max_waiting: int = 256
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    idle_timeout_s: float = 300.0
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    max_connections: int = 10_000
    drain_timeout_s: float = 30.0
    log_format: str = "text"
    replica: str = ""
    # Left out where it is not given, so that the revisions of pools stay the same.
    artifacts: ArtifactsSettings | msgspec.UnsetType = msgspec.UNSET
