"""Bare ONNX Runtime without any server, in a process of its own: what a server is held against.

`python -m bench.bare single MODEL --seconds S` runs one row of zeros serially.
`python -m bench.bare tokens MODEL ROWS.npz --way WAY --seconds S --threads T --window W` runs a
stream of token rows through one session shared by T threads, where WAY says how rows are batched.
`python -m bench.bare replay MODEL ROWS.npz --way WAY --rate R --seconds S --deadline D --seed N`
runs rows as they arrive by chance, one by one or the nearest in length of those that wait.
All print JSON.
"""

import argparse
import gc
import json
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from bench import replay
from bench.load.open_loop import schedule
from bench.session import session

Array = np.ndarray[Any, Any]


def batches(rows: Sequence[Array], way: str, window: int) -> Iterator[list[Array]]:
    """Cut an endless stream of rows into batches.

    Args:
        way: `one`; `fifo:N`, N as they come; `sorted:N`, N neighbours by length among `window`
            rows, which is what a server could see at that many requests in flight.
    """
    kind, _, size = way.partition(":")
    step = int(size or 1)
    stream = cycle(rows)
    while True:
        seen = list(islice(stream, window))
        if kind == "sorted":
            seen.sort(key=len)
        yield from (seen[at : at + step] for at in range(0, window, step))


def pad(batch: Sequence[Array]) -> dict[str, Array]:
    """Token rows as one input, padded with 0 to the longest, and the mask that says so."""
    ids = np.zeros((len(batch), max(map(len, batch))), np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(batch):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def run_tokens(
    bare: ort.InferenceSession, stream: Iterator[list[Array]], *, threads: int, seconds: float
) -> dict[str, float]:
    """Rows per second of `threads` threads that take batches from one stream."""
    lock = threading.Lock()
    done: list[int] = []
    deadline = time.monotonic() + seconds

    def work() -> None:
        while time.monotonic() < deadline:
            with lock:
                batch = next(stream)
            bare.run(None, pad(batch))
            done.append(len(batch))

    workers = [threading.Thread(target=work) for _ in range(threads)]
    started = time.monotonic()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    wall = time.monotonic() - started
    return {"rps": sum(done) / wall, "requests": sum(done), "wall_s": wall}


def run_single(bare: ort.InferenceSession, *, seconds: float) -> dict[str, float]:
    """Microseconds of a serial run of one row."""
    (takes,) = bare.get_inputs()
    tensor = np.zeros((1, *takes.shape[1:]), np.float32)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while (before := time.perf_counter()) < end:
        bare.run(None, {takes.name: tensor})
        times.append(time.perf_counter() - before)
    wall = sum(times)
    figures = {"rps": len(times) / wall, "requests": len(times), "wall_s": wall}
    return {**figures, "p50_us": statistics.median(times) * 1e6}


def run_replay(
    bare: ort.InferenceSession,
    rows: Sequence[Array],
    *,
    way: str,
    rate: float,
    seconds: float,
    deadline_s: float,
    seed: int,
) -> dict[str, Any]:
    """What `bench.load.open_loop` tells of a server, with the same arrivals and no server."""
    outcome = replay.replay(
        schedule(rate, seconds, seed),
        rows,
        lambda batch: bare.run(None, pad(batch)),
        most=replay.rows_of(way),
    )
    return outcome.as_dict(sent_s=seconds, deadline_s=deadline_s)


def main() -> None:
    """Parse the arguments, warm up, run, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["single", "tokens", "replay"])
    parser.add_argument("model", type=Path)
    parser.add_argument("rows", type=Path, nargs="?")
    parser.add_argument("--way", default="one")
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--window", type=int, default=32)
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second")
    parser.add_argument("--deadline", type=float, default=0.1, help="seconds from arrival")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    print(json.dumps(measure(chosen)))


def measure(chosen: argparse.Namespace) -> dict[str, Any]:
    """Warm up and run what was chosen."""
    bare = session(chosen.model)
    if chosen.what == "single":
        run_single(bare, seconds=0.3)
        return run_single(bare, seconds=chosen.seconds)
    with np.load(chosen.rows) as file:
        rows = [file[name] for name in file.files]
    stream = batches(rows, chosen.way, chosen.window)
    run_tokens(bare, stream, threads=chosen.threads, seconds=0.5)
    if chosen.what == "tokens":
        return run_tokens(bare, stream, threads=chosen.threads, seconds=chosen.seconds)
    gc.disable()  # as the generator does
    return run_replay(
        bare,
        rows,
        way=chosen.way,
        rate=chosen.rate,
        seconds=chosen.seconds,
        deadline_s=chosen.deadline,
        seed=chosen.seed,
    )


if __name__ == "__main__":
    main()
