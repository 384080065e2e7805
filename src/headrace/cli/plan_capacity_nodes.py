"""Which machines are there to choose from? Of flags, of a file, or made up."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import typer

from headrace.advise.capacity.nodes import GIB, NodeType
from headrace.cli.plan_capacity_asked import flagged
from headrace.core import InvalidArgumentError
from headrace.core.sizes import size_bytes

_MOST_CORES: Final = 4096
_MOST_NODE_TYPES: Final = 50
_MOST_FILE_BYTES: Final = 256 << 10
_USUAL_CORES: Final = (4, 8, 16, 32)
_USUAL_MEMORY: Final = 4 * GIB
_NODE_KEYS: Final = ("name", "cores", "memory", "cost", "gpus", "speed", "network")


def node_types(said: Sequence[str], file: Path | None, core_cost: float) -> list[NodeType]:
    """The machines to choose from."""
    with flagged():
        found = [_node(_words(text), "--node") for text in said]
    if file is not None:
        found += [_node(entry, str(file)) for entry in _listed(file)]
    if not found:
        return [
            NodeType(
                name=f"{cores}-core",
                cores=cores,
                memory_bytes=cores * _USUAL_MEMORY,
                cost_per_hour=cores * core_cost,
            )
            for cores in _USUAL_CORES
        ]
    if len(found) > _MOST_NODE_TYPES:
        msg = f"{len(found)} types of node; compare {_MOST_NODE_TYPES} at most"
        raise InvalidArgumentError(msg)
    names = [one.name for one in found]
    again = next((name for name in names if names.count(name) > 1), None)
    if again is not None:
        raise typer.BadParameter(f"two types of node are called '{again}'", param_hint="--node")
    return found


def _words(text: str) -> dict[str, str]:
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(equals for _, equals, _ in pairs):
        msg = f"'{text}' is not name=m,cores=8,memory=32GiB,cost=0.4"
        raise typer.BadParameter(msg, param_hint="--node")
    return {key.strip(): value.strip() for key, _, value in pairs}


def _listed(file: Path) -> list[dict[str, Any]]:
    from ruamel.yaml import YAML  # noqa: PLC0415  # slow to import
    from ruamel.yaml.error import YAMLError  # noqa: PLC0415  # as above

    try:
        if file.stat().st_size > _MOST_FILE_BYTES:
            raise InvalidArgumentError(f"{file} is over {_MOST_FILE_BYTES >> 10} KiB")
        found = YAML(typ="safe", pure=True).load(file.read_text())
    except (OSError, UnicodeDecodeError, YAMLError) as error:
        raise InvalidArgumentError(f"{file} cannot be read as JSON or YAML: {error}") from None
    if not isinstance(found, list) or not found or not all(isinstance(one, dict) for one in found):
        msg = f"{file} is no list of types of node, each with {', '.join(_NODE_KEYS[:4])}"
        raise InvalidArgumentError(msg)
    return found


def _node(entry: Mapping[str, Any], where: str) -> NodeType:
    unknown = [key for key in entry if key not in _NODE_KEYS]
    missing = [key for key in _NODE_KEYS[:4] if key not in entry]
    if unknown or missing:
        what = f"'{unknown[0]}' is not known" if unknown else f"'{missing[0]}' is missing"
        msg = f"{where}: of a type of node {what}; it has {', '.join(_NODE_KEYS)}"
        raise InvalidArgumentError(msg)
    memory = size_bytes(str(entry["memory"]))
    if memory is None:
        raise InvalidArgumentError(f"{where}: '{entry['memory']}' is no size, such as 32GiB")
    network = entry.get("network")
    return NodeType(
        name=str(entry["name"]),
        cores=_bounded(entry, "cores", where, 0.1, _MOST_CORES),
        memory_bytes=memory,
        cost_per_hour=_bounded(entry, "cost", where, 0.0, 1e6),
        gpus=int(_bounded(entry, "gpus", where, 0.0, 64.0)) if "gpus" in entry else 0,
        speed=_bounded(entry, "speed", where, 0.01, 100.0) if "speed" in entry else 1.0,
        network_bits_per_s=None
        if network is None
        else 1e9 * _bounded(entry, "network", where, 1e-3, 1e5),
    )


def _bounded(entry: Mapping[str, Any], key: str, where: str, low: float, high: float) -> float:
    try:
        found = float(entry[key])
    except (TypeError, ValueError):
        found = math.nan
    if not low <= found <= high:
        msg = f"{where}: {key} of '{entry['name']}' is from {low:g} to {high:g}, not {entry[key]}"
        raise InvalidArgumentError(msg)
    return found
