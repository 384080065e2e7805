"""What does a large tensor cost to bring in?

150,528 FP32 values a request (1 x 3 x 224 x 224), one connection, server on one core. "Bare" is a
blocking socket that reads the body into a buffer, runs ONNX Runtime and writes the answer: no
server can do less. The run alone, with the tensor already in memory, stands beside it.
"""

import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from bench import models, systems, verify
from bench.context import Context, http_arm
from bench.load import closed
from bench.payloads import Payload, binary_payload, json_payload, raw_payload
from bench.results import SuiteResult, Table, Target, cell
from bench.windows import Arm, Rounds, difference, figure, interleave, ratio

MODELS: Final = ("conv", "pool")
"""One that works for its answer, and one that costs nothing but the transfer."""
RUN: Final = "run alone"
BARE: Final = "bare: read, run, answer"
BINARY: Final = "replica, binary"
JSON: Final = "replica, JSON"


def run(context: Context) -> SuiteResult:
    """Measure both models."""
    with ExitStack() as stack:
        arms = [arm for model in MODELS for arm in _arms(context, model, stack)]
        rounds = interleave(arms, rounds=context.rounds)
    return SuiteResult(name="image", table=_table(rounds), targets=_targets(rounds), rounds=rounds)


def _arm(model: str, what: str) -> str:
    return f"{model}, {what}"


def _arms(context: Context, model: str, stack: ExitStack) -> list[Arm]:
    path, cores = context.models[model], context.placement.server
    random = np.random.default_rng(models.SEED)
    # What a decoded picture is: bytes over 255, so that JSON has as many digits as it really has.
    pixels = random.integers(0, 256, (1, *models.IMAGE)).astype(np.float32)
    image = {"input": pixels / np.float32(255)}
    expected = models.run_bare(path, image)
    replica = stack.enter_context(systems.replica(path, name=model, cores=cores, home=context.home))
    bare = stack.enter_context(
        systems.bare_socket(path, name=model, cores=cores, home=context.home)
    )

    text, binary = json_payload(model, image), binary_payload(model, image)
    verify.check_http(JSON, replica.http, text, expected)
    verify.check_http(BINARY, replica.http, binary, expected)
    raw = raw_payload(image["input"])
    verify.check_raw(BARE, bare.http, raw, expected["prob"])

    def load(name: str, payload: Payload) -> closed.Load:
        return context.load([payload], name=f"{model}-{name}", connections=1)

    return [
        Arm(name=_arm(model, RUN), measure=partial(_run_alone, context, path)),
        http_arm(_arm(model, BARE), bare.http, load("raw", raw)),
        http_arm(_arm(model, BINARY), replica.http, load("binary", binary)),
        http_arm(_arm(model, JSON), replica.http, load("json", text)),
    ]


def _run_alone(context: Context, path: Path) -> dict[str, float]:
    argv = [sys.executable, "-m", "bench.bare", "single", str(path)]
    argv += ["--seconds", str(context.seconds)]
    return dict(
        closed.run_tool(
            argv,
            cores=context.placement.server,
            seconds=context.seconds,
            read=closed.read_figures,
        )
    )


def _table(rounds: Rounds) -> Table:
    def base(arm: str) -> str:
        return _arm(arm.split(",", maxsplit=1)[0], BARE)

    return Table(
        headings=["model, way", "p50 us", "times bare", "more than bare, us", "requests/s"],
        rows=[
            [
                arm,
                cell(figure(rounds, arm, "p50_us")),
                cell(ratio(rounds, arm, base(arm), "p50_us"), 2),
                cell(difference(rounds, arm, base(arm), "p50_us")),
                cell(figure(rounds, arm, "rps")),
            ]
            for arm in rounds
        ],
    )


def _targets(rounds: Rounds) -> list[Target]:
    targets = []
    for model in MODELS:
        binary, json, bare = (_arm(model, what) for what in (BINARY, JSON, BARE))
        targets += [
            Target(
                text=f"{model}: binary, times bare",
                value=ratio(rounds, binary, bare, "p50_us").median,
                limit=1.15,
                is_ceiling=True,
            ),
            Target(
                text=f"{model}: JSON more than binary",
                value=difference(rounds, json, binary, "p50_us").median / 1000,
                limit=3,
                unit="ms",
                is_ceiling=True,
            ),
        ]
    return targets
