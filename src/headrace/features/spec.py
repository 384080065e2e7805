"""Parser of `features.yaml`; it reports all mistakes at once.

Imported only by processes that read the file: a replica receives its definitions and does not
import pydantic.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from headrace.core import Datatype, FailedPreconditionError, InvalidArgumentError
from headrace.core.spec.mistakes import SpecError, mistakes_of, shown, with_line
from headrace.core.spec.yaml import MAX_BYTES, SpecMistake, read_yaml
from headrace.features.definitions import (
    DataSource,
    Definitions,
    Entity,
    Feature,
    FeatureService,
    FeatureView,
    MissingValuePolicy,
    OnDemandInput,
    OnDemandView,
    ServiceColumn,
)
from headrace.features.spec_agreement import consistency_mistakes
from headrace.features.spec_models import (
    MAX_CODE_CHARACTERS,
    DefinitionsSpec,
    FeatureServiceSpec,
    FeatureSpec,
    FeatureViewSpec,
    OnDemandViewSpec,
)


def check_code_allowed(spec: DefinitionsSpec, *, allow_code: bool) -> None:
    """Raise FailedPreconditionError for definitions that run code, unless that is allowed."""
    if spec.on_demand_views and not allow_code:
        first = spec.on_demand_views[0]
        raise FailedPreconditionError(
            f"on-demand view '{first.name}' runs the code of {first.function} whenever its "
            "features are used; if you trust the author, allow it: `--allow-code` on the command "
            "line, `allow_code=True` in Python"
        )


def read_code(spec: OnDemandViewSpec, base_dir: Path) -> str:
    """Return the text of the function's file, unless the spec contains it.

    Raises:
        InvalidArgumentError: The file is not UTF-8 text, or too long.
        FailedPreconditionError: The file cannot be read.
    """
    if spec.code is not None:
        return spec.code
    path = base_dir.absolute() / Path(spec.function.rpartition(":")[0]).expanduser()
    location = f"on-demand view '{spec.name}': {path}"
    try:
        with path.open("rb") as file:
            text = file.read(4 * MAX_CODE_CHARACTERS + 1).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{location} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise FailedPreconditionError(f"{location} cannot be read: {error.strerror}") from error
    if len(text) > MAX_CODE_CHARACTERS:
        limit = f"{MAX_CODE_CHARACTERS} characters; move code to an installed package"
        raise InvalidArgumentError(f"{location} has more than {limit}")
    return text.replace("\r\n", "\n")


def on_demand_view(spec: OnDemandViewSpec, views: Mapping[str, FeatureView]) -> OnDemandView:
    """Return the view of `spec`, which contains its code."""
    assert spec.code is not None
    return OnDemandView(
        name=spec.name,
        function=spec.function,
        source=spec.code,
        inputs=tuple(_inputs(spec, views)),
        request=tuple(feature_of(column) for column in spec.request_columns),
        features=tuple(feature_of(feature) for feature in spec.features),
    )


def feature_of(spec: FeatureSpec) -> Feature:
    """Return a column, with its default converted to its datatype."""
    datatype, default = Datatype(spec.datatype), spec.default
    if isinstance(default, str):
        return Feature(name=spec.name, datatype=datatype, default=default.encode())
    if datatype in {Datatype.FP32, Datatype.FP64} and default is not None:
        default = float(default)
    return Feature(name=spec.name, datatype=datatype, default=default)


def _inputs(spec: OnDemandViewSpec, views: Mapping[str, FeatureView]) -> Iterator[OnDemandInput]:
    for item in spec.inputs:
        name, _, feature_name = item.partition(":")
        view = views[name]
        for feature in view.features:
            if not feature_name or feature.name == feature_name:
                shown_as = f"{name}__{feature.name}" if spec.full_feature_names else feature.name
                yield OnDemandInput(name=shown_as, view=view, feature=feature)


def read_definitions(path: Path, *, allow_code: bool = False) -> Definitions:
    """Read the definitions at `path`; sources and functions are relative to its directory.

    Args:
        allow_code: Whether on-demand views are allowed, whose functions run their author's code
            whenever they are used. Reading runs no code.

    Raises:
        SpecError: The definitions have mistakes, each listed with location and line.
        FailedPreconditionError: The file cannot be read, or code is not allowed.
    """
    base_dir = path.absolute().parent
    return parse_definitions(read_text(path), base_dir=base_dir, allow_code=allow_code)


def parse_definitions(
    source: str | Mapping[str, Any], *, base_dir: Path, allow_code: bool = False
) -> Definitions:
    """Parse definitions from YAML text or plain data; see `read_definitions`.

    Raises:
        SpecError: Lists all mistakes with location, and with line if `source` is text.
        FailedPreconditionError: A function's file cannot be read, or code is not allowed.
    """
    spec = checked(source)
    check_code_allowed(spec, allow_code=allow_code)
    return _definitions(self_contained(spec, base_dir), base_dir)


def read_text(path: Path) -> str:
    """Return the text of a definitions file; raise FailedPreconditionError if it is unreadable."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidArgumentError(f"{path} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise FailedPreconditionError(f"cannot read {path}: {error.strerror}") from error


def checked(source: str | Mapping[str, Any]) -> DefinitionsSpec:
    """Validate `source`; see `parse_definitions`."""
    if isinstance(source, str):
        document = read_yaml(source)
        value, lines, mistakes = document.value, document.lines, document.mistakes
        if mistakes and value is None:
            raise SpecError(mistakes)
    else:
        value, lines, mistakes = source, {}, []
    if not isinstance(value, Mapping):
        message = f"must be a mapping with 'entities' and 'feature_views', but is {shown(value)}"
        raise SpecError([*mistakes, SpecMistake(place="", message=message)])
    mistakes_in_document = consistency_mistakes(value)
    spec: DefinitionsSpec | None = None
    try:
        spec = DefinitionsSpec.model_validate(value)
    except ValidationError as error:
        mistakes_in_document = mistakes_of(error.errors(), DefinitionsSpec) + mistakes_in_document
    mistakes = [
        *mistakes,
        *(with_line(mistake, lines) for mistake in dict.fromkeys(mistakes_in_document)),
    ]
    if mistakes or spec is None:
        raise SpecError(sorted(mistakes, key=lambda mistake: mistake.line or 0))
    return spec


def self_contained(spec: DefinitionsSpec, base_dir: Path) -> DefinitionsSpec:
    """Return a self-contained copy: with absolute source paths and the code of functions.

    Raises:
        InvalidArgumentError: The file of a function is not UTF-8 text, or too large.
        FailedPreconditionError: The file cannot be read.
    """
    views = [
        view.model_copy(
            update={
                "source": view.source.model_copy(
                    update={"path": _absolute_text(view.source.path, base_dir)}
                )
            }
        )
        for view in spec.feature_views
    ]
    on_demand = [
        view.model_copy(update={"code": read_code(view, base_dir)}) for view in spec.on_demand_views
    ]
    return spec.model_copy(
        update={
            "feature_views": tuple(views),
            "on_demand_views": tuple(on_demand),
            "feast_repo": _absolute_text(spec.feast_repo, base_dir),
        }
    )


def _absolute_text(path: str | None, base_dir: Path) -> str | None:
    return None if path is None else str(_absolute(path, base_dir))


def _absolute(path: str, base_dir: Path) -> Path:
    return base_dir.absolute() / Path(path).expanduser()


def _definitions(spec: DefinitionsSpec, base_dir: Path) -> Definitions:
    entities = {
        entity.name: Entity(
            name=entity.name,
            join_key=entity.join_key or entity.name,
            datatype=Datatype(entity.datatype),
        )
        for entity in spec.entities
    }
    views = {
        view_spec.name: _view(view_spec, entities, base_dir) for view_spec in spec.feature_views
    }
    on_demand = {
        view_spec.name: on_demand_view(view_spec, views) for view_spec in spec.on_demand_views
    }
    services = {
        service_spec.name: FeatureService(
            name=service_spec.name, columns=tuple(_columns(service_spec, views, on_demand))
        )
        for service_spec in spec.feature_services
    }
    feast_repo = None if spec.feast_repo is None else _absolute(spec.feast_repo, base_dir)
    return Definitions(
        entities=entities,
        views=views,
        services=services,
        on_demand_views=on_demand,
        feast_repo=feast_repo,
    )


def _view(spec: FeatureViewSpec, entities: Mapping[str, Entity], base_dir: Path) -> FeatureView:
    return FeatureView(
        name=spec.name,
        entities=tuple(entities[name] for name in spec.entities),
        features=tuple(feature_of(feature) for feature in spec.features),
        source=DataSource(
            path=None if spec.source.path is None else _absolute(spec.source.path, base_dir),
            timestamp_field=spec.source.timestamp_field,
            created_field=spec.source.created_timestamp_column or "",
            renamed=tuple(spec.source.field_mapping.items()),
            is_naive_utc=spec.source.naive_times == "utc",
        ),
        ttl_s=spec.ttl_s,
        on_missing=MissingValuePolicy(spec.on_missing),
        on_stale=MissingValuePolicy(spec.on_stale),
        schedule=spec.materialize,
    )


def _columns(
    spec: FeatureServiceSpec,
    views: Mapping[str, FeatureView],
    on_demand: Mapping[str, OnDemandView],
) -> Iterator[ServiceColumn]:
    for item in spec.features:
        name, _, feature_name = item.partition(":")
        view = views[name] if name in views else on_demand[name]
        for feature in view.features:
            if not feature_name or feature.name == feature_name:
                shown_as = f"{name}__{feature.name}" if spec.full_feature_names else feature.name
                yield ServiceColumn(name=shown_as, view=view, feature=feature)
