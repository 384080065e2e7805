"""Events of a search, made by hand."""

from dataclasses import replace

import numpy as np

from headrace.optimize.accuracy import Fidelity, Metric, QualityVerdict
from headrace.optimize.search.journal import (
    BaselineScored,
    Built,
    CandidateFailed,
    Compared,
    Event,
    Judged,
    RecipeEnded,
    Started,
    Timed,
)
from headrace.optimize.timing import CallWindow
from headrace.runtimes.base import UNTUNED

BASE = "onnxruntime-fp32"


def started(*recipes: str, later: tuple[str, ...] = (), labelled: int = 1000) -> Started:
    return Started(
        at_s=0.0,
        runtime="onnx",
        model_class="transformer",
        why_class="6 attentions",
        recipes=(BASE, *recipes),
        later=later,
        examples=1000,
        labelled=labelled,
        made_up=False,
        calibration=128,
        calibration_sha256="c0",
        overlapping=False,
        request="x [1, 4]",
        length=None,
        calls=1,
        cores=2,
        processor_name="a processor",
        processor_features=("avx2",),
        versions={"onnxruntime": "1"},
    )


def built(name: str, *, size_bytes: int = 100, at_s: float = 1.0) -> list[Event]:
    """A recipe that made one candidate."""
    candidate = Built(
        at_s=at_s,
        recipe_name=name,
        name=name,
        title=name.upper(),
        runtime="onnx",
        path=f"candidates/{name}/model.onnx",
        tuning=UNTUNED,
        recipe={"what": name},
        size_bytes=size_bytes,
        build_s=0.5,
        is_baseline=name == BASE,
    )
    return [candidate, RecipeEnded(at_s=at_s, name=name)]


def timed(
    group: str, *ratios: tuple[str, float], blocks: int = 8, at_s: float = 2.0, spread: float = 0.01
) -> list[Event]:
    """Windows of the baseline at 10 ms, and of others at a share of that."""
    rng = np.random.default_rng(7)
    found: list[Event] = []
    for block in range(blocks):
        for name, ratio in ((BASE, 1.0), *ratios):
            latency_s = 0.01 * ratio * (1 + spread * rng.normal())
            window = CallWindow(
                name=name,
                block=block,
                at_s=float(block),
                elapsed_s=0.1,
                readings=np.full(10, latency_s, "<f8").tobytes(),
                foreign_cores=0.0,
            )
            found.append(Timed(at_s=at_s, group=group, window=window))
    return found


def verdict(*, passes: bool, loss: float = 0.0) -> QualityVerdict:
    return QualityVerdict(
        passes=passes,
        reason="no significant loss" if passes else "it loses accuracy, and not by chance",
        metric=Metric.ACCURACY,
        accuracy=0.9 - loss,
        base_accuracy=0.9,
        loss=loss,
        loss_ci=(loss - 0.01, loss + 0.01),
        loss_bound=loss + 0.01,
        p_value=0.5 if passes else 0.001,
        lost=3,
        gained=2,
        n=1000,
        detectable_loss=0.008,
        agreement_ratio=0.99,
    )


def judged(name: str, *, passes: bool, loss: float = 0.0, at_s: float = 3.0) -> Event:
    return Judged(at_s=at_s, name=name, verdict=verdict(passes=passes, loss=loss))


def screened(name: str, *, passes: bool = True, loss: float = 0.0, at_s: float = 2.8) -> Event:
    """Asked the first 512 of 5,000 examples."""
    so_far = replace(verdict(passes=passes, loss=loss), n=512, reason="on the first 512 of 5,000")
    return Judged(at_s=at_s, name=name, verdict=so_far, is_part=True)


def compared(name: str, *, passes: bool, at_s: float = 3.0) -> Event:
    fidelity = Fidelity(passes=passes, reason="fidelity only", agreement_ratio=0.99, n=256)
    return Compared(at_s=at_s, name=name, fidelity=fidelity)


def failed(name: str, reason: str, *, at_s: float = 1.0) -> Event:
    return CandidateFailed(at_s=at_s, name=name, title=name.upper(), reason=reason)


def scored(n: int = 1000) -> BaselineScored:
    return BaselineScored(at_s=2.5, metric="accuracy", output="logits", value=0.9, n=n)


SCORED = scored()
