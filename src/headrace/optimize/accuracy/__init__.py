"""Accuracy of a candidate on labels, and its acceptance. Imports no sibling.

`read_labelled` reads examples, `answers` asks them, `choose_metric` says by what is judged, and
`try_candidate` asks a candidate and judges it. Without labels, `measure_fidelity` says how alike
the answers are.
"""

from headrace.optimize.accuracy.examples import Examples, RowTexts, batches
from headrace.optimize.accuracy.fidelity import (
    Fidelity,
    OutputFidelity,
    cosine_run,
    gives_embeddings,
    measure_fidelity,
)
from headrace.optimize.accuracy.gate import GateTrial, is_hopeless, judge, try_candidate
from headrace.optimize.accuracy.inference import ModelAnswers, answers
from headrace.optimize.accuracy.labelled import DataOptions, generated_examples, read_labelled
from headrace.optimize.accuracy.metrics import Metric, MetricChoice, choose_metric, usual_metric
from headrace.optimize.accuracy.verdict import QualityVerdict

__all__ = [
    "DataOptions",
    "Examples",
    "Fidelity",
    "GateTrial",
    "Metric",
    "MetricChoice",
    "ModelAnswers",
    "OutputFidelity",
    "QualityVerdict",
    "RowTexts",
    "answers",
    "batches",
    "choose_metric",
    "cosine_run",
    "generated_examples",
    "gives_embeddings",
    "is_hopeless",
    "judge",
    "measure_fidelity",
    "read_labelled",
    "try_candidate",
    "usual_metric",
]
