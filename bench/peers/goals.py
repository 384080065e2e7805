"""What Headrace promises beside its peers, held against what was measured.

A promise whose figures were not taken is neither kept nor broken; it is left out.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

from bench.peers.catalog import PEERS
from bench.peers.rows import Row, find, ratios
from bench.peers.running import HEADRACE
from bench.peers.store import Part
from bench.peers.suites import alone, goodput, image, latency, own, saturation, strain
from bench.results import Target

SMALL: Final = ("mlp", "gbdt")
GOODPUT_TIMES: Final = 1.3
OF_FLOOR: Final = 0.95
IMAGE_OF_FLOOR: Final = 0.97
GRPC_TIMES: Final = 4.0
GATEWAY_TIMES: Final = 1.0
OF_PEAK: Final = 0.9
REFUSED_S: Final = 0.05
NEIGHBOUR_TIMES: Final = 1.2
MANY_TIMES: Final = 1.3


def targets(parts: Mapping[str, Part]) -> list[Target]:
    """Every promise that could be checked, in the order of the suites."""
    peers = {name: part for name, part in parts.items() if name in PEERS}
    return [
        *_small_models(peers),
        *_half_load(peers),
        *_goodput(peers),
        *_images(peers),
        *_gateways(peers),
        *_grpc(peers),
        *_costs(peers),
        *_overload(peers),
        *_alone(parts.get(HEADRACE)),
    ]


def against(
    part: Part, key: str, *, suite: str, model: str, load: str, base: str = ""
) -> float | None:
    """How many times the figure of `base` (the peer) Headrace's is; None if it was not taken."""
    ours = find(part.rows, suite=suite, model=model, load=load, server=HEADRACE)
    theirs = find(part.rows, suite=suite, model=model, load=load, server=base or part.name)
    values = ratios(ours, theirs, key) if ours and theirs else []
    return statistics.median(values) if values else None


def _small_models(peers: Mapping[str, Part]) -> Iterator[Target]:
    for name, part in peers.items():
        for model in SMALL:
            where = {"suite": saturation.SUITE, "model": model, "load": saturation.JSON}
            if (value := against(part, "rps", **where)) is not None:
                text = f"{model}, requests/s, times {PEERS[name].title}"
                yield Target(text=text, value=value, limit=PEERS[name].times)


def _half_load(peers: Mapping[str, Part]) -> Iterator[Target]:
    where = {"suite": latency.SUITE, "model": "mlp", "load": latency.of_slower(latency.HALF)}
    for name, part in peers.items():
        if (value := against(part, "p99_s", **where)) is not None:
            text = f"mlp, p99 at half load, times that of {PEERS[name].title}"
            yield Target(text=text, value=value, limit=1, is_ceiling=True)


def _goodput(peers: Mapping[str, Part]) -> Iterator[Target]:
    where = {"suite": goodput.SUITE, "model": "minilm", "load": goodput.LOAD}
    values = {name: against(part, "goodput", **where) for name, part in peers.items()}
    yield from _least("MiniLM, goodput, times", values, GOODPUT_TIMES)


def _images(peers: Mapping[str, Part]) -> Iterator[Target]:
    values = [
        value
        for part in peers.values()
        for load in (image.BINARY, image.OWN)
        if (
            value := against(
                part, "rps", suite=image.SUITE, model="resnet", load=load, base=image.FLOOR
            )
        )
        is not None
    ]
    if values:
        text = "ResNet-18, binary, requests/s, of a bare socket's"
        yield Target(text=text, value=statistics.median(values), limit=IMAGE_OF_FLOOR)


def _gateways(peers: Mapping[str, Part]) -> Iterator[Target]:
    where = {"suite": own.GATEWAY, "model": "mlp", "load": own.GATEWAY_LOAD}
    values = {name: against(part, "rps", **where) for name, part in peers.items()}
    yield from _least("mlp through Envoy, requests/s, times", values, GATEWAY_TIMES)


def _grpc(peers: Mapping[str, Part]) -> Iterator[Target]:
    where = {"suite": own.GRPC, "model": "mlp", "load": own.GRPC_LOAD}
    values = {
        name: against(part, "rps", **where) for name, part in peers.items() if PEERS[name].is_python
    }
    yield from _least("gRPC through Envoy, calls/s, times without a gateway", values, GRPC_TIMES)


def _costs(peers: Mapping[str, Part]) -> Iterator[Target]:
    where = {"suite": own.COST, "model": "mlp", "load": own.COST_LOAD}
    for what, key in (
        ("start to first answer", "first_answer_s"),
        ("idle memory", "idle_pss_mib"),
    ):
        for name, part in peers.items():
            value = against(part, key, **where)
            if value is not None and PEERS[name].is_python:
                text = f"{what}, times that of {PEERS[name].title}"
                yield Target(text=text, value=value, limit=1, is_ceiling=True)


def _overload(peers: Mapping[str, Part]) -> Iterator[Target]:
    kept, refused = [], []
    for part in peers.values():
        rows = [row for row in part.rows if (row.suite, row.server) == (strain.OVERLOAD, HEADRACE)]
        at_last = [row for row in rows if row.load == strain.at_times(strain.TOO_MUCH)]
        if at_last:
            peak = max(row.median("goodput") for row in rows)
            kept.append(at_last[0].median("goodput") / peak if peak else 0.0)
            refused.append(at_last[0].median("refused_p99_s"))
    if kept:
        yield Target(
            text="goodput at 3 x capacity, of its peak",
            value=statistics.median(kept),
            limit=OF_PEAK,
        )
        yield Target(
            text="99 % of refusals at 3 x capacity come within",
            value=statistics.median(refused),
            limit=REFUSED_S,
            unit="s",
            is_ceiling=True,
        )


def _alone(part: Part | None) -> Iterator[Target]:
    if part is None:
        return
    if (share := _of_floor(part.rows)) is not None:
        yield Target(text="MiniLM, goodput, of the floor's best", value=share, limit=OF_FLOOR)
    for text, suite, key, pair, limit in (
        (
            "p99 while a large neighbour loads, times that without",
            alone.NEIGHBOUR,
            "p99_s",
            (alone.LOADING, alone.QUIET),
            NEIGHBOUR_TIMES,
        ),
        (
            "p50 of 8 encoders in turn, times that of one",
            alone.MANY_SUITE,
            "p50_us",
            (alone.ROUND_ROBIN, alone.ONE),
            MANY_TIMES,
        ),
    ):
        by_server = {row.server: row for row in part.rows if row.suite == suite}
        if set(pair) <= set(by_server):
            values = ratios(by_server[pair[0]], by_server[pair[1]], key)
            yield Target(text=text, value=statistics.median(values), limit=limit, is_ceiling=True)


def _of_floor(rows: Sequence[Row]) -> float | None:
    floor = {row.server: row.figures["goodput"] for row in rows if row.suite == alone.FLOOR}
    ours = floor.pop(HEADRACE, None)
    if not (ours and floor):
        return None
    best = [max(values) for values in zip(*floor.values(), strict=True)]
    shares = [mine / base for mine, base in zip(ours, best, strict=True) if base]
    return statistics.median(shares) if shares else None


def _least(text: str, values: Mapping[str, float | None], limit: float) -> Iterable[Target]:
    known = {name: value for name, value in values.items() if value is not None}
    if known:
        best = min(known, key=lambda name: known[name])
        yield Target(text=f"{text} {PEERS[best].title}", value=known[best], limit=limit)
