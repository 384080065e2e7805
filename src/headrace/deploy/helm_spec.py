"""Which settings of a spec mean nothing in a cluster, or not without a control plane? Pure."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from headrace.core.redact import VARIABLE
from headrace.core.spec import SystemSpec, is_model_path
from headrace.core.spec_kubernetes import Autoscaler
from headrace.deploy.helm_export import Mount
from headrace.deploy.losses import Loss
from headrace.deploy.written import is_within, written

_PUSH: Final = "push it (`headrace models push NAME FILE`) and name it NAME:VERSION"
_OF_ONE_MACHINE: Final = re.compile(r"(sqlite|unix|file|feast|log):")
_URLS: Final = ("url", "broker")
_NO_CONTROL: Final = (
    "is the gateway's or the control plane's, and with --mode static there is neither"
)
_STATIC: Final = (
    "version", "kubernetes", "jobs", "streams", "alerts", "security", "online_stores",
    "gateway.max_body_bytes",
    *(
        f"endpoints[].{name}"
        for name in (
            "name", "model", "versions", "replicas", "batching", "timeout_s", "runtime", "device",
            "labels", "nulls", "slo", "autoscale", "allow_code", "network", "features",
        )
    ),
)  # fmt: skip
"""What static objects, or the alerts beside them, say."""
_OF_POOLS: Final = ("pools", "endpoints[].pool")


def spec_losses(spec: SystemSpec, mounts: Iterable[Mount]) -> list[Loss]:
    """What no cluster can express: files of one machine, and what joins processes of one."""
    document = spec.document()
    found = list(_endpoint_losses(spec))
    for name in ("limits_listen", "limits_service"):
        if getattr(spec.gateway, name) is not None:
            way = "leave it out: the control plane counts for all gateways of the chart"
            found.append(Loss(f"gateway.{name}", "joins gateways of one machine", way))
    endpoints = {key: value for key, value in document.items() if key not in {"jobs", "streams"}}
    return found + path_losses(endpoints, "", tuple(mounts))


def _endpoint_losses(spec: SystemSpec) -> Iterator[Loss]:
    for i, endpoint in enumerate(spec.endpoints):
        place = f"endpoints[{i}]"
        if endpoint.features is not None and endpoint.features.online_store is None:
            yield Loss(
                f"{place}.features.online_store",
                "is not set, and a pod does not see the home's own store",
                "name one of `online_stores` that pods reach, such as redis://HOST:PORT/DB",
            )
        for j, version in enumerate(endpoint.split()):
            where = place if endpoint.versions is None else f"{place}.versions[{j}]"
            if version.model is not None and is_model_path(version.model):
                why = f"is {version.model}, a file of this machine that no pod can read"
                yield Loss(f"{where}.model", why, _PUSH)


def path_losses(value: object, place: str, mounts: tuple[Mount, ...]) -> list[Loss]:
    """Files and stores of this machine that the document names, where no mount has them."""
    if isinstance(value, list | tuple):
        return [
            loss
            for i, one in enumerate(value)
            for loss in path_losses(one, f"{place}[{i}]", mounts)
        ]
    if not isinstance(value, Mapping):
        return []
    found: list[Loss] = []
    for key, one in value.items():
        where = f"{place}.{key}" if place else str(key)
        if str(key).endswith("_file") or key == "trusted_keys":
            paths = one if isinstance(one, list | tuple) else [one]
            found += [loss for path in paths for loss in _file_loss(where, path, mounts)]
        elif key in _URLS and isinstance(one, str) and _OF_ONE_MACHINE.match(one):
            why = f"is {one.partition(':')[0]}:…, which lies on one machine"
            found.append(Loss(where, why, "name a server that pods reach"))
        else:
            found += path_losses(one, where, mounts)
    return found


def _file_loss(place: str, path: object, mounts: tuple[Mount, ...]) -> Iterator[Loss]:
    if isinstance(path, str) and path.startswith("/") and not any(m.has(path) for m in mounts):
        yield Loss(
            place,
            f"is {path}, which pods do not have",
            f"mount it: --mount secret:NAME={path.rpartition('/')[0] or '/FOLDER'}",
        )


def static_losses(spec: SystemSpec) -> list[Loss]:
    """What needs a gateway or a control plane of ours, outermost settings only."""
    found = list(_pool_losses(spec))
    for one in written(spec):
        is_told = any(
            is_within(one.field, known) or is_within(known, one.field)
            for known in (*_STATIC, *_OF_POOLS)
        )
        if is_told or any(is_within(one.place, loss.place) for loss in found):
            continue
        way = "leave it to --mode driver, or to the gateway of your cluster"
        found.append(Loss(one.place, _NO_CONTROL, way))
    for i, endpoint in enumerate(spec.endpoints):
        place = f"endpoints[{i}]"
        if endpoint.access is None:
            found.append(
                Loss(
                    f"{place}.access",
                    "is not set, so that Headrace asks who calls beyond loopback, and "
                    "with --mode static nobody is asked",
                    "say `access: public`, or have something else ask",
                )
            )
        if endpoint.autoscale is not None and spec.kubernetes.autoscaler == Autoscaler.HEADRACE:
            why = "is what the control plane scales by, and with --mode static there is none"
            way = "say who does it: kubernetes.autoscaler, hpa or keda"
            found.append(Loss(f"{place}.autoscale", why, way))
        found += [
            Loss(f"{place}.versions[{j}].upstream", "is a server of somebody else's", "route to it")
            for j, version in enumerate(endpoint.versions or ())
            if version.upstream is not None
        ]
    public = {
        f"endpoints[{i}].access" for i, e in enumerate(spec.endpoints) if e.access == "public"
    }
    return [loss for loss in found if loss.place not in public]


def _pool_losses(spec: SystemSpec) -> Iterator[Loss]:
    why = "is told which models it hosts by the control plane, and with --mode static there is none"
    way = "leave it out, with every endpoint's 'pool': each gets pods of its own"
    yield from (Loss(f"pools[{i}]", why, way) for i, _ in enumerate(spec.pools))
    for i, endpoint in enumerate(spec.endpoints):
        if endpoint.pool is not None:
            why = "names a pool, which nobody tells its models without a control plane"
            yield Loss(f"endpoints[{i}].pool", why, "leave it out")


def variables_of(document: object) -> tuple[str, ...]:
    """The variables of the environment that a document names, in order."""
    if isinstance(document, str):
        return tuple(dict.fromkeys(VARIABLE.findall(document)))
    parts: Iterable[object] = ()
    if isinstance(document, Mapping):
        parts = document.values()
    elif isinstance(document, list | tuple):
        parts = document
    return tuple(dict.fromkeys(name for part in parts for name in variables_of(part)))


def models_apart(spec: SystemSpec) -> Iterator[tuple[str, str]]:
    """Place and reference of each model that jobs and streams run by themselves."""
    for i, job in enumerate(spec.jobs):
        yield f"jobs[{i}].model", job.model
    for i, stream in enumerate(spec.streams):
        if stream.model is not None:
            yield f"streams[{i}].model", stream.model


def model_path_loss(place: str, model: str) -> Iterator[Loss]:
    """A model that lies on this machine only."""
    if is_model_path(model):
        yield Loss(place, f"is {model}, a file of this machine that no pod can read", _PUSH)
