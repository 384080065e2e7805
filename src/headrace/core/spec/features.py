"""Online stores of a spec, and `features` of an endpoint, which reads one of them."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BeforeValidator, Field, Strict, field_validator

from headrace.core.feature_settings import FeatureLookup, FeatureWatch
from headrace.core.names import NAME_PATTERN
from headrace.core.redact import VARIABLE
from headrace.core.spec.base import SpecModel
from headrace.core.spec.yaml import SpecMistake

_DEFAULTS: Final = FeatureLookup(service="", online_store="")

_OF_URLS: Final = frozenset(":/$")
_FILES: Final = ("sqlite", "feast")
_READ_ONLY: Final = {"feast": "Feast", "hopsworks": "Hopsworks", "hopsworks+http": "Hopsworks"}

_Column = Annotated[str, Field(min_length=1, max_length=300)]


def _checked_name(value: object) -> object:
    if isinstance(value, str) and _OF_URLS & set(value):
        msg = (
            "should be the name of an online store, not its URL: write `online_stores: "
            "[{name: NAME, url: URL}]` at the top level of the spec, and NAME here"
        )
        raise ValueError(msg)
    return value


StoreName = Annotated[str, BeforeValidator(_checked_name), Field(pattern=NAME_PATTERN)]


class OnlineStoreSpec(SpecModel):
    """A store of feature values, with the name by which endpoints and streams refer to it."""

    name: str = Field(
        pattern=NAME_PATTERN, description="Name by which endpoints and streams refer to the store."
    )
    url: str = Field(
        max_length=4096,
        pattern=r"^([a-z][a-z0-9+.-]*://[^\s]+|\$\{[A-Za-z_][A-Za-z0-9_]*\})$",
        description="`redis://HOST:PORT/DB`, `rediss://`, `unix:///SOCKET`, `sqlite:////PATH`, "
        "`feast:///PATH`, `hopsworks://HOST/STORE`, or a plug-in's scheme. `${NAME}` is an "
        "environment variable: the whole URL, or a part that is not a file path.",
    )

    @field_validator("url")
    @classmethod
    def _names_a_file_plainly(cls, url: str) -> str:
        scheme, _, path = url.partition("://")
        if scheme in _FILES:
            if VARIABLE.search(path):
                raise ValueError("a file path must not contain `${NAME}`")
            absolute = path.removeprefix("/") if scheme == "sqlite" else path
            if not absolute.startswith("/"):
                slashes = "//" if scheme == "sqlite" else "/"
                raise ValueError(f"a file path must be absolute: {scheme}://{slashes}PATH")
        return url


class EndpointFeaturesSpec(SpecModel):
    """Features of the entities that callers name, read from the online store.

    The feature service is the one that `headrace features apply` activated.
    """

    service: str = Field(
        min_length=1, max_length=128, description="Feature service whose columns the model takes."
    )
    online_store: StoreName | None = Field(
        default=None,
        description="An entry of `online_stores`, by name. Null: the online store of the home "
        "directory.",
    )
    inputs: dict[_Column, Annotated[tuple[_Column, ...], Strict(strict=False)]] = Field(
        default_factory=dict,
        description="Per input of the model, its columns in order; columns that are not features "
        "come with the request. Empty: by name, else all columns go to the single matrix input.",
    )
    timeout_s: float = Field(
        default=_DEFAULTS.timeout_s,
        gt=0.0,
        le=60.0,
        description="How long a request may wait for the online store. Unit: seconds.",
    )
    cache_ttl_s: float = Field(
        default=_DEFAULTS.cache_ttl_s,
        ge=0.0,
        le=86_400.0,
        description="How long each replica caches the features it read. Unit: seconds.",
    )
    on_unavailable: Literal["reject", "defaults"] = Field(
        default="reject",
        description="If the store cannot be read in time: `reject` fails the request, `defaults` "
        "uses the default values.",
    )
    sample_ratio: float = Field(
        default=0.01,
        ge=0.0,
        le=1.0,
        description="Share of look-ups whose entity keys and values are recorded in the home "
        "directory, to detect skew. 0 records nothing.",
    )
    skew_every_s: float = Field(
        default=900.0,
        ge=1.0,
        le=604_800.0,
        description="Interval at which recorded look-ups are compared with the values that "
        "training will read. Unit: seconds.",
    )
    show_status: bool = Field(
        default=False,
        description="Adds an output `VIEW__status`: `PRESENT`, `STALE` or `MISSING`.",
    )

    def watch(self) -> FeatureWatch | None:
        """Return the settings of skew detection; None if no look-ups are sampled."""
        if not self.sample_ratio:
            return None
        return FeatureWatch(
            service=self.service,
            sample_ratio=self.sample_ratio,
            skew_every_s=self.skew_every_s,
        )


def feature_disagreements(endpoint: Mapping[Any, Any], path: str) -> list[SpecMistake]:
    """Return disagreements between `features` and the rest of an endpoint."""
    features = endpoint.get("features")
    if features is None:
        return []
    mistakes = []
    if endpoint.get("upstream") is not None:
        message = (
            "cannot be combined with 'upstream': only Headrace's own replicas look features up"
        )
        mistakes.append(SpecMistake(place=f"{path}.features", message=message))
    if endpoint.get("pool") is not None:
        message = (
            "cannot be combined with 'pool': the processes of a pool cannot reach an online store"
        )
        mistakes.append(SpecMistake(place=f"{path}.features", message=message))
    return mistakes


def online_store_disagreements(document: Mapping[Any, Any]) -> Iterator[SpecMistake]:
    """Yield disagreements between `online_stores` and the references to them."""
    urls: dict[object, object] = {}
    for i, store in enumerate(_mappings(document.get("online_stores"))):
        if store.get("name") in urls:
            message = f"{store.get('name')!r} is already the name of another online store"
            yield SpecMistake(place=f"online_stores[{i}].name", message=message)
        urls[store.get("name")] = store.get("url")
    for kind in ("endpoints", "streams"):
        for i, entry in enumerate(_mappings(document.get(kind))):
            for part in ("features", "push"):
                section = entry.get(part)
                name = section.get("online_store") if isinstance(section, Mapping) else None
                mistake = _reference_mistake(entry, kind, part, name, urls)
                if mistake is not None:
                    path = f"{kind}[{i}].{part}.online_store"
                    yield SpecMistake(place=path, message=mistake)


def _reference_mistake(
    entry: Mapping[Any, Any], kind: str, part: str, name: object, urls: Mapping[object, object]
) -> str | None:
    if not isinstance(name, str) or _OF_URLS & set(name):
        return None
    if name not in urls:
        there_are = f"there are: {', '.join(map(str, urls))}" if urls else "none is declared"
        return f"there is no online store {name!r} in `online_stores`; {there_are}"
    url = urls[name]
    if kind == "endpoints" and _is_tcp(str(url)) and entry.get("network") is not True:
        return (
            f"{name!r} is reached over the network, which replicas may not use; add `network: true`"
        )
    owner = _READ_ONLY.get(str(url).partition("://")[0])
    if part == "push" and owner is not None:
        return f"{name!r} belongs to {owner}, which writes its values itself; name another store"
    return None


def _mappings(items: object) -> list[Mapping[Any, Any]]:
    """Return the entries of a list, with an empty mapping for any other entry."""
    entries = items if isinstance(items, list | tuple) else ()
    return [entry if isinstance(entry, Mapping) else {} for entry in entries]


def _is_tcp(url: str) -> bool:
    scheme = url.partition("://")[0].lower() if "://" in url else ""
    # The names in a Feast repository are not known here; the code that reads it reports mistakes.
    return scheme not in {"", "sqlite", "unix", "feast"}
