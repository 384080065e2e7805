"""How much of a real transformer's speed is left when it is served?

all-MiniLM-L6-v2, one sentence per request, 32 in flight, lengths as in film reviews; both cores for
everybody. Bare ONNX Runtime sees the same stream, 32 at a time, and may sort it.
"""

import shutil
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from bench import cpu, minilm, models, systems, text, verify
from bench.bare import pad
from bench.context import Context, http_arm
from bench.load import closed
from bench.payloads import Payload, binary_payload, text_payload
from bench.results import SuiteResult, Table, Target, cell, cores_used
from bench.session import session
from bench.windows import Arm, Rounds, fair_rounds, figure, interleave, ratio, spread

Array = np.ndarray[Any, Any]

MODEL: Final = "minilm"
IN_FLIGHT: Final = 32
ROWS: Final = 512
VERIFIED: Final = 8

ONE: Final = "bare, one by one"
SORTED: Final = {f"bare, sorted by length, {size} a batch": f"sorted:{size}" for size in (4, 8, 16)}
FIFO: Final = "naive batcher, 16 as they come, padded"
SERVED: Final = "replica, binary"
TEXT: Final = "replica, text: tokenized inside"
_REPLICAS: Final = (SERVED, TEXT)
BEST: Final = (ONE, *SORTED)
LOWEST_SPEARMAN: Final = 0.815


def run(context: Context) -> SuiteResult:
    """Measure; skipped where the weights cannot be had."""
    try:
        folder = minilm.fetch(context.cache)
    except RuntimeError as error:
        return SuiteResult(name="transformer", skipped=str(error))
    model = folder / "minilm.onnx"
    rows, notes = _rows(folder / "tokenizer.json", context.data)
    with ExitStack() as stack:
        rounds = interleave(_arms(context, model, rows, stack), rounds=context.rounds)
    targets = [_served_share(rounds)]
    if TEXT in rounds:
        shares = [
            text_["rps"] / served["rps"] for text_, served in fair_rounds(rounds, TEXT, SERVED)
        ]
        share = spread(shares).median
        targets.append(Target(text="rows/s of text, of tokens", value=share, limit=0.9))
    if context.data:
        bare = session(model, threads=len(context.placement.all))
        correlation = text.spearman_on_stsb(bare, folder / "tokenizer.json", context.data)
        targets.append(
            Target(text="STS-B Spearman of this file", value=correlation, limit=LOWEST_SPEARMAN)
        )
    return SuiteResult(
        name="transformer", table=_table(rounds), targets=targets, notes=notes, rounds=rounds
    )


def _rows(tokenizer: Path, data: Path | None) -> tuple[list[Array], list[str]]:
    if data:
        rows = text.sentence_rows(tokenizer, data, ROWS)
        notes = ["real sentences"]
    else:
        rows = text.drawn_rows(ROWS)
        notes = ["random tokens in real lengths; STS-B is not checked: no --data"]
    lengths = [len(row) for row in rows]
    return rows, [f"{notes[0]}: {np.mean(lengths):.1f} tokens on average, {max(lengths)} at most"]


def _arms(context: Context, model: Path, rows: list[Array], stack: ExitStack) -> list[Arm]:
    cores = context.placement.all
    replica = stack.enter_context(
        systems.replica(model, name=MODEL, cores=cores, home=context.home)
    )
    payloads: list[Payload] = []
    for row in rows:
        inputs = pad([row])
        payloads.append(binary_payload(MODEL, inputs))
        if len(payloads) <= VERIFIED:
            expected = models.run_bare(model, inputs)
            verify.check_http(SERVED, replica.http, payloads[-1], expected)

    load = closed.Load(
        index=context.load(payloads, name=MODEL, connections=IN_FLIGHT).index,
        connections=IN_FLIGHT,
        seconds=context.seconds,
        cores=cores,
    )
    arms = [http_arm(SERVED, replica.http, load)]
    if context.data:
        arms.append(_text_arm(context, model, len(rows), stack))
    stored = context.home / "rows.npz"
    np.savez(stored, *rows)
    bare = partial(_bare, context, model, stored)
    return [
        *arms,
        Arm(name=ONE, measure=partial(bare, "one")),
        *[Arm(name=name, measure=partial(bare, way)) for name, way in SORTED.items()],
        Arm(name=FIFO, measure=partial(bare, "fifo:16")),
    ]


def _text_arm(context: Context, model: Path, count: int, stack: ExitStack) -> Arm:
    """The same sentences as text, through a pipeline that tokenizes them."""
    assert context.data is not None
    cores = context.placement.all
    folder = context.home / "text"
    folder.mkdir()
    shutil.copy(model, folder)
    shutil.copy(model.with_name("tokenizer.json"), folder)
    steps = "steps: [{kind: tokenizer}, {kind: model, path: minilm.onnx}]\n"
    (folder / "pipeline.yaml").write_text(steps)
    served = stack.enter_context(
        systems.replica(folder, name="text", cores=cores, home=context.home)
    )
    payloads = []
    for sentence in text.sentences(context.data, count):
        payloads.append(text_payload("text", sentence))
        if len(payloads) <= VERIFIED:
            (row,) = text.tokenise(folder / "tokenizer.json", [sentence])
            expected = models.run_bare(model, pad([row]))
            verify.check_http(TEXT, served.http, payloads[-1], expected)
    load = closed.Load(
        index=context.load(payloads, name="text", connections=IN_FLIGHT).index,
        connections=IN_FLIGHT,
        seconds=context.seconds,
        cores=cores,
    )
    return http_arm(TEXT, served.http, load)


def _bare(context: Context, model: Path, rows: Path, way: str) -> dict[str, float]:
    cores = context.placement.all
    argv = [sys.executable, "-m", "bench.bare", "tokens", str(model), str(rows), "--way", way]
    argv += ["--seconds", str(context.seconds), "--threads", str(len(cores))]
    argv += ["--window", str(IN_FLIGHT)]
    return dict(
        closed.run_tool(argv, cores=cores, seconds=context.seconds, read=closed.read_figures)
    )


def _served_share(rounds: Rounds) -> Target:
    shares = [
        served["rps"] / max(way["rps"] for way in bare)
        for served, *bare in fair_rounds(rounds, SERVED, *BEST)
    ]
    return Target(
        text="rows/s served, of the best bare way in each round",
        value=spread(shares).median,
        limit=0.95,
    )


def _table(rounds: Rounds) -> Table:
    return Table(
        headings=["way", "rows/s", "times one by one", "server cores", "load cores"],
        rows=[
            [
                arm,
                cell(figure(rounds, arm, "rps")),
                cell(ratio(rounds, arm, ONE, "rps"), 2),
                cores_used(rounds, arm, systems.REPLICA) if arm in _REPLICAS else "",
                cores_used(rounds, arm, cpu.LOAD) if arm in _REPLICAS else "",
            ]
            for arm in rounds
        ],
    )
