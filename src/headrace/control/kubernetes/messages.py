"""What do we read of the objects that others write: pods, and slices of addresses?

Everything else in them is passed over: a newer cluster says more.
"""

from typing import Final, TypeVar

import msgspec

from headrace.control.kubernetes.names import Object

T = TypeVar("T")
TERMINAL: Final = frozenset({"Succeeded", "Failed"})


class Message(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A part of an object."""


class OwnerReference(Message, frozen=True):
    """Whose end is this object's; `controller`: who decides about it."""

    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None


class Metadata(Message, frozen=True):
    """Of every object."""

    name: str
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[OwnerReference] | None = None

    def annotation(self, key: str) -> str:
        """The annotation; empty if there is none."""
        return (self.annotations or {}).get(key, "")

    def label(self, key: str) -> str:
        """The label; empty if there is none."""
        return (self.labels or {}).get(key, "")

    @property
    def controller(self) -> OwnerReference | None:
        """Who decides about it."""
        owners = self.owner_references or ()
        return next((owner for owner in owners if owner.controller), None)


class Waiting(Message, frozen=True):
    """A container that does not run yet."""

    reason: str = ""
    message: str = ""


class Terminated(Message, frozen=True):
    """A container that ended."""

    exit_code: int = 0
    reason: str = ""
    message: str = ""


class ContainerState(Message, frozen=True):
    """One of them is set."""

    waiting: Waiting | None = None
    terminated: Terminated | None = None


class ContainerStatus(Message, frozen=True):
    """`started`: its startup probe passed, so it was ready once."""

    name: str
    ready: bool = False
    started: bool | None = None
    restart_count: int = 0
    state: ContainerState = ContainerState()
    last_state: ContainerState = ContainerState()


class Condition(Message, frozen=True):
    """One fact of a pod."""

    type: str
    status: str = ""
    reason: str = ""
    message: str = ""


class PodStatus(Message, frozen=True):
    """How a pod is."""

    phase: str = ""
    pod_ip: str = msgspec.field(default="", name="podIP")
    conditions: list[Condition] | None = None
    container_statuses: list[ContainerStatus] | None = None
    init_container_statuses: list[ContainerStatus] | None = None

    def condition(self, kind: str) -> Condition | None:
        """The condition of this type."""
        return next((one for one in self.conditions or () if one.type == kind), None)


class Pod(Message, frozen=True):
    """One pod."""

    metadata: Metadata
    status: PodStatus = PodStatus()

    @property
    def is_leaving(self) -> bool:
        """Whether it was told to end."""
        return self.metadata.deletion_timestamp is not None

    @property
    def is_over(self) -> bool:
        """Whether nothing of it runs, or will: its Deployment counts it no more."""
        return self.status.phase in TERMINAL

    @property
    def is_ready(self) -> bool:
        """Whether it says so."""
        ready = self.status.condition("Ready")
        return ready is not None and ready.status == "True"


class TargetReference(Message, frozen=True):
    """The pod behind an address."""

    kind: str = ""
    name: str = ""
    uid: str = ""


class SliceConditions(Message, frozen=True):
    """None is unknown; of `ready` that counts as yes, as Kubernetes has it."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class SliceEndpoint(Message, frozen=True):
    """One pod's addresses, of which the first counts."""

    addresses: list[str]
    conditions: SliceConditions = SliceConditions()
    target_ref: TargetReference | None = None

    @property
    def takes_requests(self) -> bool:
        """Whether new requests may go there."""
        said = self.conditions
        return said.ready is not False and said.serving is not False and not said.terminating


class SlicePort(Message, frozen=True):
    """One port that all of a slice's endpoints have."""

    name: str = ""
    port: int | None = None


class EndpointSlice(Message, frozen=True):
    """Some of the addresses of a Service."""

    metadata: Metadata
    endpoints: list[SliceEndpoint] | None = None
    ports: list[SlicePort] | None = None

    @property
    def http_port(self) -> int | None:
        """Where its endpoints take requests."""
        return next((one.port for one in self.ports or () if one.name == "http"), None)


def read(kind: type[T], found: Object) -> T | None:
    """`found` as a message; None if it is none: one odd object must not stop all others."""
    try:
        return msgspec.convert(found, kind)
    except msgspec.ValidationError:
        return None
