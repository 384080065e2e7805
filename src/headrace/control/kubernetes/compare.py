"""Does an object still say what we said? Pure.

Only what we said counts: servers fill in defaults, and others may add fields of their own.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Final

_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "volumeMounts": ("mountPath",),
    "ownerReferences": ("uid",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
}
"""Lists that are maps: by which fields their items are told apart."""
_WHOLE: Final = frozenset({"selector", "labelSelector", "nodeSelector"})
"""Maps that are values as a whole: a key that somebody adds makes another value of them."""
_PORTS: Final = (("containerPort", "protocol"), ("port", "protocol"))
_QUANTITIES: Final = frozenset({"requests", "limits", "averageValue"})
_QUANTITY: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)(m|[kMGTPE]|[KMGTPE]i)?")
_UNITS: Final = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{unit: Decimal(1000) ** (i + 1) for i, unit in enumerate("kMGTPE")},
    **{f"{unit}i": Decimal(1024) ** (i + 1) for i, unit in enumerate("KMGTPE")},
}


def differences(wanted: object, found: object) -> list[str]:
    """The places at which `found` does not say what `wanted` does, such as `spec.replicas`."""
    return list(_differences(wanted, found, ()))


def same_quantity(one: object, other: object) -> bool:
    """Whether two quantities, such as 1000m and 1, are the same."""
    return quantity(one) == quantity(other)


def quantity(value: object) -> Decimal | None:
    """The number that a quantity such as 2Gi or 500m means; None if it is none."""
    found = _QUANTITY.fullmatch(str(value))
    return None if found is None else Decimal(found[1]) * _UNITS[found[2] or ""]


def _differences(wanted: object, found: object, path: tuple[str, ...]) -> Iterator[str]:
    if path and path[-1] in _WHOLE:
        if wanted != found:
            yield _told(path)
    elif isinstance(wanted, Mapping) and isinstance(found, Mapping):
        for key, value in wanted.items():
            if key in found:
                yield from _differences(value, found[key], (*path, str(key)))
            elif value not in ("", [], {}):  # servers leave out what is empty
                yield _told((*path, str(key)))
    elif _is_list(wanted) and _is_list(found):
        yield from _list_differences(wanted, found, path)  # type: ignore[arg-type]  # both are, just asked
    elif wanted != found and not (_QUANTITIES & {*path[-2:]} and same_quantity(wanted, found)):
        yield _told(path)


def _list_differences(
    wanted: Sequence[object], found: Sequence[object], path: tuple[str, ...]
) -> Iterator[str]:
    keys = _keys_of(path[-1] if path else "", wanted)
    if not keys:
        if len(wanted) != len(found):
            yield _told(path)
            return
        for i, (one, other) in enumerate(zip(wanted, found, strict=True)):
            yield from _differences(one, other, (*path, str(i)))
        return
    known = {_identity(one, keys): one for one in found}
    for one in wanted:
        identity = _identity(one, keys)
        place = (*path, "/".join(map(str, identity)))
        if identity in known:
            yield from _differences(one, known[identity], place)
        else:
            yield _told(place)


def _keys_of(name: str, items: Sequence[object]) -> tuple[str, ...]:
    if name != "ports":
        return _KEYS.get(name, ())
    first = items[0] if items else None
    fits = (keys for keys in _PORTS if isinstance(first, Mapping) and keys[0] in first)
    return next(fits, ())


def _identity(item: object, keys: tuple[str, ...]) -> tuple[object, ...]:
    return tuple(item.get(key) for key in keys) if isinstance(item, Mapping) else (item,)


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


def _told(path: tuple[str, ...]) -> str:
    return ".".join(path)
