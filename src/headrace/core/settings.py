"""Settings of a replica or pool process: the control plane's message at start, as JSON.

Durations are in seconds, sizes in bytes. Defaults are safe: every queue and every body has a bound.
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
    """Treatment of a null in a float input: of a request, a stream's record or a job's row."""

    NAN = "nan"
    """Missing value: NaN."""
    ERROR = "error"
    """The request, record or row is refused."""


class PaddingSpec(SpecPart, frozen=True, kw_only=True):
    """Batching of requests of different lengths."""

    axis: Annotated[int, FileOnly(ge=1, le=16)] = 1
    """The variable axis; 1 is the first after the batch."""
    values: dict[str, float] = msgspec.field(default_factory=dict)
    """Pad value by input name; 0 for inputs not named."""
    max_ratio: Annotated[float, FileOnly(ge=1.0, le=100.0)] = 1.25
    """Largest ratio of a batch's padded size to its real size; 1.0 batches equal lengths only."""


class BatchingSpec(SpecPart, frozen=True, kw_only=True):
    """How each replica queues requests and runs them together."""

    max_batch_size: Annotated[int, FileOnly(ge=1, le=65536)] = 32
    """Unit: rows."""
    # 0 means, as in Triton, that axis 0 of a model's tensors is not a batch; the replica needs
    # that.
    max_queue_delay_s: Annotated[float, FileOnly(ge=0.0, le=60.0)] = 0.0
    """How long a batch may wait for more requests while the model is free. Unit: seconds."""
    max_queue_size: Annotated[int, FileOnly(ge=1, le=1_000_000)] = 1024
    """Requests are refused while this many wait. Unit: requests."""
    max_concurrent_runs: Annotated[int | None, FileOnly(ge=1, le=1024)] = None
    """Runs of the model at once; null for one per usable core."""
    intra_op_threads: Annotated[int | msgspec.UnsetType | None, FileOnly(ge=1, le=1024)] = (
        msgspec.UNSET
    )
    """Threads inside one run; null for one. No effect in a pool."""
    default_timeout_s: Annotated[float | None, DERIVED] = None
    """The endpoint's `timeout_s`: deadline of a request without one. Unit: seconds."""
    padding: PaddingSpec | None = None
    """Null batches equal lengths only, unless the model is known to apply a mask."""
    # Fields that are UNSET are left out of messages: revisions of older state keep their ids.
    rows_independent: Annotated[
        bool | msgspec.UnsetType, Meta(extra_json_schema={"default": False})
    ] = msgspec.UNSET
    """Declares that the rows of a batch do not influence each other's outputs. A model without
    proof of that is then batched, and checked while it serves; otherwise it gets one request at a
    time.
    """
    row_check_ratio: Annotated[
        float | msgspec.UnsetType,
        FileOnly(ge=0.0, le=1.0),
        Meta(extra_json_schema={"default": DEFAULT_ROW_CHECK_RATIO}),
    ] = msgspec.UNSET
    """Share of the batches of which one row is run alone afterwards and compared, at most one per
    second and replica; only if rows are declared independent, or different lengths share a batch. 0
    for none, if a second run has side effects.
    """


OPENAI_SUFFIX: Final = ".openai"
"""End of the path of a language model's second socket, after that of the first."""
OPENAI_PORT: Final = 8003
"""Port of OpenAI's API of a language model whose first address is a port."""


class Pooling(StrEnum):
    """How a language model combines the vectors of all tokens into one."""

    MEAN = "mean"
    CLS = "cls"
    """Vector of the first token."""
    LAST = "last"
    RANK = "rank"
    """Relevance of a document for a query: serves `/v1/rerank`."""


class LlmSpec(SpecPart, frozen=True, kw_only=True):
    """How each replica of a GGUF model runs."""

    slots: Annotated[int, FileOnly(ge=1, le=256)] = 4
    """Requests that generate at the same time; more wait. Each needs memory for its context."""
    context_tokens: Annotated[int | None, FileOnly(ge=16, le=16_777_216)] = None
    """Context of each slot: prompt and answer. Null: the model's, at most 4096. Unit: tokens."""
    pooling: Pooling | None = None
    """Also serves embeddings of the tokens combined in this way: `mean`, `cls`, `last`; `rank`
    serves `/v1/rerank`. Null: as the file says, which for most chat models is none.
    """


DEFAULT_CONTEXT_TOKENS: Final = 4096


class SignedSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Signature that a replica verifies before it loads its model.

    `statement` is the signed statement, which the model has to match; key and signature are raw
    Ed25519 in base64.
    """

    statement: str
    key: str
    signature: str


class ReplicaSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one replica: the model, the listeners and the limits."""

    model_name: str
    model_version: str
    path: str
    """File or directory of the model."""
    runtime: str = ""
    """Runtime that loads the model; empty detects it."""
    sha256: str = ""
    """Digest that is checked before loading; empty skips the check."""
    uds: str = ""
    """Path of a Unix socket to listen on; may be combined with `port`."""
    host: str = "127.0.0.1"
    port: int | None = None
    """TCP port on `host`; 0 picks a free port, None listens on `uds` only."""
    grpc_port: int | None = None
    """Port of a `grpc.aio` server; None starts none."""
    metrics_port: int | None = None
    """Port of an additional metrics listener; None opens none."""
    batching: BatchingSpec = BatchingSpec()
    intra_op_threads: int | None = None
    """Threads inside one run; None lets the replica plan them."""
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    idle_timeout_s: float = 300.0
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    max_connections: int = 10_000
    """Connections at once (bounded by file descriptors); above it, those that were idle longest are
    closed.
    """
    drain_timeout_s: float = 30.0
    log_format: str = "text"
    replica: str = ""
    labels: dict[str, list[str]] = {}
    # Left out when unset: older settings, and the revisions made of them, stay the same.
    signed: SignedSettings | msgspec.UnsetType = msgspec.UNSET
    """Signature that the model must have; unset for none."""
    features: FeatureLookup | msgspec.UnsetType = msgspec.UNSET
    """Features that requests look up by entity; unset for none."""
    device: Device | msgspec.UnsetType = msgspec.UNSET
    """Device that must run the model; unset for `auto`."""
    nulls: NullPolicy | msgspec.UnsetType = msgspec.UNSET
    """Treatment of nulls in float inputs; unset for `nan`."""
    formats: dict[str, str] | msgspec.UnsetType = msgspec.UNSET
    """Per input, Triton's name of the axis order of images, for the model's configuration."""
    llm: LlmSpec | msgspec.UnsetType = msgspec.UNSET
    """How a GGUF model runs; unset for the defaults."""
    openai_port: int | msgspec.UnsetType = msgspec.UNSET
    """Port on `host` of a GGUF model's OpenAI API; unset for `uds` with `.openai` appended."""


class ArtifactsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Store from which a process fetches models that are not on its machine."""

    url: str
    """Shared artifact store, as in `headrace models fetch`."""
    directory: str
    """Folder of fetched artifacts; only this process may write there."""


class PoolReplicaSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings of one replica of a pool: a process that hosts many models and loads each on demand.

    The control plane sends the list of models later, over `uds`, or over `port` with the internal
    token; until then the replica is not ready. Fields without a description are as in
    `ReplicaSettings`.
    """

    name: str
    """Name of the pool."""
    uds: str = ""
    host: str = "127.0.0.1"
    port: int | None = None
    metrics_port: int | None = None
    memory_bytes: int = 1 << 30
    """Memory limit of all loaded models, as measured in their load checks."""
    max_loaded: int = 64
    """Number of models that may be loaded at once."""
    load_timeout_s: float = 30.0
    """How long a request waits for its model, and a load may take."""
    max_waiting: int = 256
    """Requests that may wait for models to be loaded; more are refused."""
    max_body_bytes: int = DEFAULT_MAX_BODY_BYTES
    idle_timeout_s: float = 300.0
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    max_connections: int = 10_000
    drain_timeout_s: float = 30.0
    log_format: str = "text"
    replica: str = ""
    # Left out when unset, so that the revisions of pools stay the same.
    artifacts: ArtifactsSettings | msgspec.UnsetType = msgspec.UNSET
    """Store of models whose paths are `sha256/DIGEST/FILE`, fetched before their first load;
    unset if all models are on this machine."""
