"""What does an error of Kafka's mean, and who has to act?"""

from collections.abc import Mapping
from typing import Final

from confluent_kafka import KafkaError, KafkaException

from headrace.core import (
    ConflictError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
)

# ruff: noqa: SLF001  # names with an underscore are of librdkafka itself, and public
_E = KafkaError
PARTITION_EOF: Final = _E._PARTITION_EOF
AUTO_OFFSET_RESET: Final = _E._AUTO_OFFSET_RESET
NO_OFFSET: Final = _E._NO_OFFSET
TIMED_OUT: Final = _E._TIMED_OUT
UNSTABLE: Final = _E.UNSTABLE_OFFSET_COMMIT
ALL_BROKERS_DOWN: Final = _E._ALL_BROKERS_DOWN
MAX_POLL_EXCEEDED: Final = _E._MAX_POLL_EXCEEDED
AUTHENTICATION: Final = _E._AUTHENTICATION
CONNECTION: Final = frozenset({_E._AUTHENTICATION, _E._SSL, _E._TRANSPORT, _E._RESOLVE})
"""What a connection meets; the client itself only tries again."""
_KINDS: Final[Mapping[type[HeadraceError], tuple[int, ...]]] = {
    UnavailableError: (
        _E._TRANSPORT,
        _E._ALL_BROKERS_DOWN,
        _E._RESOLVE,
        _E._SSL,
        _E._TIMED_OUT,
        _E._TIMED_OUT_QUEUE,
        _E._MSG_TIMED_OUT,
        _E._WAIT_COORD,
        _E._DESTROY,
        _E._ISR_INSUFF,
        _E.REQUEST_TIMED_OUT,
        _E.NETWORK_EXCEPTION,
        _E.BROKER_NOT_AVAILABLE,
        _E.LEADER_NOT_AVAILABLE,
        _E.NOT_LEADER_FOR_PARTITION,
        _E.NOT_ENOUGH_REPLICAS,
        _E.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
        _E.COORDINATOR_LOAD_IN_PROGRESS,
        _E.COORDINATOR_NOT_AVAILABLE,
        _E.NOT_COORDINATOR,
        _E.CONCURRENT_TRANSACTIONS,
        _E.REBALANCE_IN_PROGRESS,
        _E.UNSTABLE_OFFSET_COMMIT,
        _E.KAFKA_STORAGE_ERROR,
        _E.THROTTLING_QUOTA_EXCEEDED,
    ),
    UnauthenticatedError: (_E._AUTHENTICATION, _E.SASL_AUTHENTICATION_FAILED),
    PermissionDeniedError: (
        _E.TOPIC_AUTHORIZATION_FAILED,
        _E.GROUP_AUTHORIZATION_FAILED,
        _E.CLUSTER_AUTHORIZATION_FAILED,
        _E.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
        _E.DELEGATION_TOKEN_AUTHORIZATION_FAILED,
    ),
    NotFoundError: (
        _E.UNKNOWN_TOPIC_OR_PART,
        _E.UNKNOWN_TOPIC_ID,
        _E._UNKNOWN_TOPIC,
        _E._UNKNOWN_PARTITION,
    ),
    ConflictError: (
        _E._FENCED,
        _E._ASSIGNMENT_LOST,
        _E.FENCED_INSTANCE_ID,
        _E.FENCED_MEMBER_EPOCH,
        _E.INVALID_PRODUCER_EPOCH,
        _E.INVALID_PRODUCER_ID_MAPPING,
        _E.PRODUCER_FENCED,
        _E.ILLEGAL_GENERATION,
        _E.UNKNOWN_MEMBER_ID,
        _E.UNRELEASED_INSTANCE_ID,
    ),
    InvalidArgumentError: (
        _E._INVALID_ARG,
        _E._CONFLICT,
        _E.MSG_SIZE_TOO_LARGE,
        _E.INVALID_MSG_SIZE,
        _E.RECORD_LIST_TOO_LARGE,
        _E.INVALID_CONFIG,
        _E.INVALID_PARTITIONS,
        _E.INVALID_REPLICATION_FACTOR,
        _E.INVALID_GROUP_ID,
        _E.INVALID_SESSION_TIMEOUT,
        _E.INVALID_TRANSACTION_TIMEOUT,
        _E.INVALID_TIMESTAMP,
        _E.INVALID_RECORD,
        _E.POLICY_VIOLATION,
        _E.TOPIC_EXCEPTION,
        _E.INCONSISTENT_GROUP_PROTOCOL,
    ),
    UnsupportedError: (
        _E._UNSUPPORTED_FEATURE,
        _E._NOT_IMPLEMENTED,
        _E.UNSUPPORTED_VERSION,
        _E.UNSUPPORTED_FOR_MESSAGE_FORMAT,
        _E.UNSUPPORTED_COMPRESSION_TYPE,
    ),
}
_KIND_OF: Final = {code: kind for kind, codes in _KINDS.items() for code in codes}
_MEANS: Final[Mapping[type[HeadraceError], str]] = {
    UnauthenticatedError: "it does not know us: look at sasl.username, sasl.password and "
    "sasl.mechanism",
    PermissionDeniedError: "we may not: somebody has to add a rule (ACL) to the cluster",
    ConflictError: "another member has our place",
}
_MEANS_OF: Final[Mapping[int, str]] = {
    _E.INVALID_SESSION_TIMEOUT: "its servers take a session_timeout_s of 6 s to 30 min unless they "
    "are told otherwise (group.min.session.timeout.ms)",
    _E.UNSTABLE_OFFSET_COMMIT: "a transaction that covers it is open: it ends within its time "
    "(transaction.timeout.ms), after which this can be asked again",
    _E.INVALID_TIMESTAMP: "the topic takes no record of that time (message.timestamp.before.max.ms "
    "and message.timestamp.after.max.ms); change them, or write answers with `timestamps: now`",
    _E.INCONSISTENT_GROUP_PROTOCOL: "the group's other members run with another "
    "partition.assignment.strategy or group.protocol",
}
SHOULD_WAIT: Final = frozenset(_KINDS[UnavailableError])
"""Errors that pass by themselves."""


def error_of(error: BaseException) -> KafkaError:
    """The error that an exception of the client's carries.

    Its `AdminClient` and its consumers raise alike; a few calls raise without one.
    """
    if isinstance(error, KafkaException) and error.args and isinstance(error.args[0], KafkaError):
        return error.args[0]
    return KafkaError(_E._FAIL, str(error))


def failure(error: KafkaError, *, doing: str, address: str, reason: str = "") -> HeadraceError:
    """What to raise for it.

    Args:
        doing: What was tried, such as "write to topic 't'".
        reason: What the connection said, where the error itself says too little.
    """
    kind = _KIND_OF.get(error.code())
    if kind is None:
        kind = UnavailableError if error.retriable() else FailedPreconditionError
    said = error.str().removeprefix("Local: ")
    because = f"{said}: {reason}" if reason and reason not in said else said
    means = _MEANS_OF.get(error.code()) or _MEANS.get(kind)
    out = f"; {means}" if means else ""
    return kind(f"Kafka at {address}: cannot {doing}: {because} ({error.name()}){out}")
