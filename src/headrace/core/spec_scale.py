"""What may stand under `autoscale` and `upstream` of an endpoint, `budget` and `pools`."""

from typing import Annotated, Final, Self

from pydantic import AfterValidator, Field, Strict, model_validator

from headrace.core.autoscale_settings import AutoscaleSettings, MachineBudget, ScheduleHint
from headrace.core.cron import check_schedule
from headrace.core.names import NAME_PATTERN
from headrace.core.spec_access import UpstreamTlsSpec
from headrace.core.spec_base import SpecModel
from headrace.core.upstream_addresses import check_upstream_url
from headrace.core.upstream_settings import UpstreamProtocol, UpstreamSettings, UpstreamTls

_DAY_S: Final = 86_400.0
_DEFAULT: Final = AutoscaleSettings()


class ScheduleSpec(SpecModel):
    """At least so many copies for some time after each moment that a cron line names."""

    cron: str = Field(min_length=9, max_length=200, description="Five fields: `0 8 * * 1-5`.")
    duration_s: float = Field(gt=0.0, le=7 * _DAY_S, description="Unit: seconds.")
    min_replicas: int = Field(ge=1, le=1024, description="Unit: processes.")
    timezone: str = Field(default="UTC", max_length=64, description="Such as Europe/Berlin.")

    @model_validator(mode="after")
    def _can_be_read(self) -> Self:
        check_schedule(self.cron, self.timezone)
        return self


class AutoscaleSpec(SpecModel):
    """How many copies run, by load."""

    min_replicas: int = Field(
        default=1, ge=0, le=1024, description="0 scales to zero. Unit: processes."
    )
    max_replicas: int = Field(default=4, ge=1, le=1024, description="Unit: processes.")
    target_in_flight: float | None = Field(
        default=None,
        gt=0.0,
        le=1_000_000.0,
        description="Requests running or queued per copy; null derives it from the slo.",
    )
    target_queue_wait_s: float | None = Field(
        default=None,
        gt=0.0,
        le=3600.0,
        description="Mean wait in a queue; null derives it from the slo. Unit: seconds.",
    )
    stable_window_s: float = Field(
        default=60.0, ge=1.0, le=3600.0, description="Signals are averaged over it. Unit: seconds."
    )
    panic_window_s: float = Field(
        default=6.0, ge=1.0, le=600.0, description="The short window for bursts. Unit: seconds."
    )
    panic_ratio: float = Field(
        default=1.1,
        ge=1.0,
        le=100.0,
        description="Load over target in the short window from which it rules.",
    )
    scale_down_delay_s: float = Field(
        default=120.0,
        ge=0.0,
        le=_DAY_S,
        description="How long fewer copies must have been enough. Unit: seconds.",
    )
    max_scale_up_ratio: float = Field(
        default=4.0, gt=1.0, le=1000.0, description="How far one step up may go, as a factor."
    )
    max_scale_down_ratio: float = Field(
        default=2.0, gt=1.0, le=1000.0, description="How far one step down may go, as a factor."
    )
    idle_s: float = Field(
        default=300.0,
        ge=1.0,
        le=_DAY_S,
        description="Without a request for so long, scale to zero. Unit: seconds.",
    )
    hold_s: float = Field(
        default=30.0,
        ge=0.0,
        le=3600.0,
        description="How long a request waits for the first copy. Unit: seconds.",
    )
    max_held: int = Field(
        default=100, ge=0, le=100_000, description="More waiting requests are refused."
    )
    schedule: Annotated[tuple[ScheduleSpec, ...], Strict(strict=False)] = Field(
        default=(), max_length=64, description="Known busy times. See ScheduleSpec."
    )

    @model_validator(mode="after")
    def _bounds_agree(self) -> Self:
        if self.min_replicas > self.max_replicas:
            msg = f"min_replicas {self.min_replicas} is above max_replicas {self.max_replicas}"
            raise ValueError(msg)
        if self.panic_window_s > self.stable_window_s:
            msg = f"panic_window_s {self.panic_window_s:g} is above stable_window_s"
            raise ValueError(msg)
        for hint in self.schedule:
            if hint.min_replicas > self.max_replicas:
                msg = f"a schedule wants {hint.min_replicas}, max_replicas is {self.max_replicas}"
                raise ValueError(msg)
        return self

    def settings(self, *, slo_latency_s: float | None = None) -> AutoscaleSettings:
        """The message to the autoscaler."""
        fields = self.model_dump(exclude={"schedule"})
        hints = tuple(ScheduleHint(**hint.model_dump()) for hint in self.schedule)
        return AutoscaleSettings(**fields, schedule=hints, slo_latency_s=slo_latency_s)


class BudgetSpec(SpecModel):
    """What all copies together may use."""

    cpus: float | None = Field(
        default=None, gt=0.0, le=4096.0, description="Null for what the machine has. Unit: cores."
    )
    memory_bytes: int | None = Field(
        default=None, ge=1 << 20, description="Null for what the machine has. Unit: bytes."
    )

    def settings(self) -> MachineBudget:
        """The message to the autoscaler."""
        return MachineBudget(cpus=self.cpus, memory_bytes=self.memory_bytes)


class UpstreamSpec(SpecModel):
    """A server that someone else runs, instead of a model."""

    url: Annotated[str, AfterValidator(check_upstream_url)] = Field(
        pattern=r'^(https?|grpcs?)://[!"$-.0->A-~]+(/[!"$->@-~]*)?$',
        max_length=2048,
        description="http://host:port, https://… or grpc://…; a path in it comes first.",
    )
    protocol: str = Field(
        default="v2",
        pattern=r"^(v2|grpc|v1|torchserve|openai|http)$",
        description="v2, grpc, v1, torchserve, openai or http.",
    )
    model: str = Field(
        default="",
        max_length=256,
        pattern=r"^[A-Za-z0-9_./-]*$",
        description="What the model is called there; empty for the endpoint's name.",
    )
    health_path: str | None = Field(
        default="",
        max_length=1024,
        pattern=r"^(/[!-~]*)?$",
        description="Asked to see whether it lives; empty for the protocol's own, null for none.",
    )
    health_interval_s: float = Field(default=2.0, ge=0.1, le=3600.0, description="Unit: seconds.")
    max_requests: int = Field(
        default=1024, ge=1, le=1_000_000, description="At once; more get 503. Unit: requests."
    )
    tls: UpstreamTlsSpec | None = Field(
        default=None, description="How an https or grpcs server is verified. See UpstreamTlsSpec."
    )

    def settings(self) -> UpstreamSettings:
        """The message to the gateway."""
        fields = self.model_dump(exclude={"protocol", "tls"})
        tls = None if self.tls is None else UpstreamTls(**self.tls.model_dump(exclude_none=True))
        return UpstreamSettings(**fields, protocol=UpstreamProtocol(self.protocol), tls=tls)


class PoolSpec(SpecModel):
    """Processes that host several small models, loaded when first asked for."""

    name: str = Field(pattern=NAME_PATTERN, description="What endpoints call it.")
    replicas: int = Field(default=1, ge=1, le=1024, description="How many copies. Unit: processes.")
    memory_bytes: int = Field(
        default=1 << 30,
        ge=1 << 20,
        description="Loaded models of one copy; the longest unused go first. Unit: bytes.",
    )
    max_loaded: int = Field(
        default=64, ge=1, le=10_000, description="Loaded at once in one copy. Unit: models."
    )
    load_timeout_s: float = Field(
        default=30.0,
        gt=0.0,
        le=3600.0,
        description="How long a request waits for its model to load. Unit: seconds.",
    )
