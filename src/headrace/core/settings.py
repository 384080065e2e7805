"""What one replica is told at its start: the message from the control plane, as JSON.

Durations are seconds, sizes bytes. Defaults are the safe ones: every queue and every body has a
bound.
"""

from enum import StrEnum
from typing import Final

import msgspec

from headrace.core.devices import Device
from headrace.core.feature_settings import FeatureSettings

DEFAULT_MAX_BODY_BYTES: Final = 64 << 20
DEFAULT_ROW_CHECK_RATIO: Final = 0.001


class Nulls(StrEnum):
    """What a null is in an input of floats: of a request, of a stream's record, of a job's row."""

    NAN = "nan"
    """A missing value: NaN."""
    ERROR = "error"
    """A mistake: the request, the record or the row is refused."""


class PaddingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How requests of different lengths share a batch.

    For a model with a variable axis besides the batch.

    `axis` is the variable axis (1 is the first after the batch). `values` gives the pad value of
    each input that has the axis; inputs that are not named are padded with 0. `max_ratio` bounds
    what padding may cost: padded size over real size of a batch, 1.0 means equal lengths only.
    """

    axis: int = 1
    values: dict[str, float] = {}
    max_ratio: float = 1.25


class BatchingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How one replica queues and batches.

    `max_batch_size` counts rows; 0 says, as in Triton, that axis 0 of the tensors is no batch.
    `max_queue_delay_s` is how long a batch may wait for company although the runtime is free.
    `max_queue_size` counts requests. `max_concurrent_runs`: None for one per usable core.
    `default_timeout_s`: the deadline of a request that names none. `padding`: None batches equal
    shapes only, unless the model has an attention mask and padding was verified at load.
    `rows_independent`: the operator declares that rows do not influence each other, so a model of
    which that is not proven is batched. `row_check_ratio`: share of the batches of such a model of
    which a row is run alone and compared.
    """

    max_batch_size: int = 32
    max_queue_delay_s: float = 0.0
    max_queue_size: int = 1024
    max_concurrent_runs: int | None = None
    default_timeout_s: float | None = None
    padding: PaddingSettings | None = None
    # Left out where they are not given: older settings, and the revisions made of them, stay the
    # same.
    rows_independent: bool | msgspec.UnsetType = msgspec.UNSET
    row_check_ratio: float | msgspec.UnsetType = msgspec.UNSET


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
    batching: BatchingSettings = BatchingSettings()
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
    features: FeatureSettings | msgspec.UnsetType = msgspec.UNSET
    device: Device | msgspec.UnsetType = msgspec.UNSET
    nulls: Nulls | msgspec.UnsetType = msgspec.UNSET
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


class PoolSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
