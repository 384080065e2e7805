"""What is asked of a search: the message to the process that carries it out."""

from enum import StrEnum
from typing import Final

import msgspec

from headrace.runtimes.optimized_file import OtherProcessor

DEFAULT_BUDGET_S: Final = 180.0
DEFAULT_LENGTH: Final = 128
"""Of a variable axis besides the batch, in what is timed: usual for encoders of text."""
DEFAULT_SIDE: Final = 224
"""The same for conv nets, where no data says how large images are: usual for classifiers."""


class Target(StrEnum):
    """What is to become better."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    MEMORY = "memory"
    COST = "cost"


class SearchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One search. Paths are those that the process sees; empty for what is not there.

    `data`: labelled examples that candidates are judged by. `teach`: others, to calibrate with and
    to learn from; without them it is calibrated with some of `data`, whose labels it is not told.
    `calibrate`: with how many examples. `max_loss`: how much of the metric may be lost, 0.01 for
    one point of accuracy. `threads`: inside one run; `rows` and `length` of the request that is
    timed, `length` None for what the examples have where they are equally long. `only`: names of
    recipes, `*` for any letters; empty for all that apply.
    """

    source: str
    runtime: str = ""
    allow_code: bool = False
    digest: str = ""
    data: str = ""
    teach: str = ""
    tokenizer: str = ""
    label: str = ""
    text: str = ""
    metric: str = ""
    output: str = ""
    calibrate: int = 256
    target: Target = Target.LATENCY
    max_loss: float = 0.01
    budget_s: float = DEFAULT_BUDGET_S
    threads: int = 1
    rows: int = 1
    length: int | None = None
    seed: int = 0
    only: tuple[str, ...] = ()
    on_other_processor: OtherProcessor = OtherProcessor.VERIFY

    @property
    def needs_batches(self) -> bool:
        """Whether the load is one of many rows: those of a request, or of requests in a queue."""
        return self.rows > 1 or self.target in {Target.THROUGHPUT, Target.COST}
