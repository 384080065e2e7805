"""What is wrong with the columns that services and on-demand views take of other views?"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from headrace.core.spec_yaml import SpecMistake
from headrace.features.definitions import EVENT_TIMESTAMP, STATUS_SUFFIX
from headrace.features.spec_document import (
    Document,
    by_name,
    items,
    join_key,
    misfitting_default,
    repeated,
    texts,
)

_FUNCTION: Final = re.compile(r"[^\x00-\x1f\x7f:]+\.py:[A-Za-z_][A-Za-z0-9_]*")
_Views = Mapping[str, Document]


def of_on_demand(view: Document, views: _Views, place: str) -> Iterator[SpecMistake]:
    """What is wrong with an on-demand view; `views` are the feature views that there are."""
    name = view.get("name")
    if isinstance(name, str) and name in views:
        message = f"{name!r} is already the name of a feature view"
        yield SpecMistake(place=f"{place}.name", message=message)
    function = view.get("function")
    if isinstance(function, str) and not _FUNCTION.fullmatch(function):
        message = f"{function[:200]!r} is no FILE.py:NAME, such as ratios.py:ratios"
        yield SpecMistake(place=f"{place}.function", message=message)
    taken: dict[str, str] = {}
    is_full = view.get("full_feature_names") is True
    yield from _columns(view.get("inputs"), views, taken, f"{place}.inputs", is_full=is_full)
    for i, column in items(view.get("request_columns")):
        at = f"{place}.request_columns[{i}]"
        yield from misfitting_default(column, f"{at}.default")
        shown_as = column.get("name")
        if shown_as == EVENT_TIMESTAMP:
            yield SpecMistake(place=f"{at}.name", message="is the column of the time")
        elif isinstance(shown_as, str):
            if shown_as in taken:
                message = f"{shown_as!r} is already {taken[shown_as]}; give it another name"
                yield SpecMistake(place=f"{at}.name", message=message)
            taken.setdefault(shown_as, "a request column")
    if not taken and not list(texts(view.get("inputs"))):
        message = "takes nothing; name `inputs` of feature views, or `request_columns`"
        yield SpecMistake(place=place, message=message)
    yield from repeated(view.get("features"), f"{place}.features")
    for i, feature in items(view.get("features")):
        yield from misfitting_default(feature, f"{place}.features[{i}].default")


def of_service(
    service: Document, views: _Views, entities: Document, place: str
) -> Iterator[SpecMistake]:
    """What is wrong with a service; `views` are feature views and on-demand views."""
    used = [item.partition(":")[0] for _, item in texts(service.get("features"))]
    taken = _reserved([name for name in used if name in views], views, entities)
    yield from _request_columns(dict.fromkeys(used), views, taken, place)
    is_full = service.get("full_feature_names") is True
    yield from _columns(service.get("features"), views, taken, f"{place}.features", is_full=is_full)


def _columns(
    value: object, views: _Views, taken: dict[str, str], place: str, *, is_full: bool
) -> Iterator[SpecMistake]:
    """What is wrong with a list of `VIEW` and `VIEW:FEATURE`; names in `taken` are not free."""
    for i, item in texts(value):
        at = f"{place}[{i}]"
        view_name, colon, wanted = item.partition(":")
        if view_name not in views:
            known = ", ".join(map(str, views)) or "none"
            message = f"there is no feature view {view_name!r}; there are: {known}"
            yield SpecMistake(place=at, message=message)
            continue
        names = [str(one.get("name")) for _, one in items(views[view_name].get("features"))]
        if colon and wanted not in names:
            message = f"view {view_name!r} has no feature {wanted!r}; it has: {', '.join(names)}"
            yield SpecMistake(place=at, message=message)
            continue
        for name in [wanted] if colon else names:
            shown_as = f"{view_name}__{name}" if is_full else name
            if shown_as in taken:
                message = (
                    f"{shown_as!r} is already {taken[shown_as]}; name each feature once, or set "
                    "full_feature_names where two views have features of one name"
                )
                yield SpecMistake(place=at, message=message)
            taken.setdefault(shown_as, f"a column, of view {view_name!r}")


def _reserved(used: Sequence[str], views: _Views, entities: Document) -> dict[str, str]:
    """What a table of the service has besides its features, which none may be called like."""
    taken = {EVENT_TIMESTAMP: "the column of the time"}
    for view_name in used:
        taken[f"{view_name}{STATUS_SUFFIX}"] = f"the status of view {view_name!r}"
        for source in (view_name, *_inputs_of(views[view_name])):
            taken[f"{source}{STATUS_SUFFIX}"] = f"the status of view {source!r}"
            for _, name in texts(views.get(source, {}).get("entities")):
                taken[join_key(entities.get(name, {"name": name}))] = "a join key"
    return taken


def _request_columns(
    used: Mapping[str, None], views: _Views, taken: dict[str, str], place: str
) -> Iterator[SpecMistake]:
    """Columns of one name have to be one column: a request and a table have it once."""
    there: dict[str, tuple[object, object]] = {}
    for view_name in used:
        for name, column in by_name(views.get(view_name, {}).get("request_columns")).items():
            kind = (column.get("datatype"), column.get("default"))
            if name in taken or there.setdefault(name, kind) != kind:
                was = taken.get(name, "a request column of another datatype or default")
                message = f"view {view_name!r} has the request column {name!r}, which is {was}"
                yield SpecMistake(place=f"{place}.features", message=message)
    taken |= dict.fromkeys(there, "a request column")


def _inputs_of(view: Document) -> list[str]:
    return [item.partition(":")[0] for _, item in texts(view.get("inputs"))]
