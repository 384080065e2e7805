"""Quality evaluation of candidates, and the decision whether one is accepted.

`read_labelled` reads examples, `answers` runs a model on them, `choose_metric` selects the metric,
and `try_candidate` runs and judges a candidate. Without labels, `measure_fidelity` compares the
answers with the baseline's.
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
