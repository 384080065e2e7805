"""What did a candidate lose on labels, and may it be accepted?

`read_labelled` reads examples, `answers` asks them, `choose_metric` says by what is judged, and
`try_candidate` asks a candidate and judges it. Without labels, `measure_fidelity` says how alike
the answers are.
"""

from headrace.optimize.accuracy.asking import Answers, answers
from headrace.optimize.accuracy.embedded_pairs import cosine_run, gives_embeddings
from headrace.optimize.accuracy.examples import Examples, batches
from headrace.optimize.accuracy.fidelity import Fidelity, measure_fidelity
from headrace.optimize.accuracy.gate import is_hopeless, judge
from headrace.optimize.accuracy.generated import generated_examples
from headrace.optimize.accuracy.labelled import DataWish, read_labelled
from headrace.optimize.accuracy.metrics import MetricChoice, choose_metric, usual_metric
from headrace.optimize.accuracy.output_fidelity import OutputFidelity
from headrace.optimize.accuracy.pair_requests import Texts
from headrace.optimize.accuracy.scoring import Metric
from headrace.optimize.accuracy.trial import Trial, try_candidate
from headrace.optimize.accuracy.verdict import Verdict, worse

__all__ = [
    "Answers",
    "DataWish",
    "Examples",
    "Fidelity",
    "Metric",
    "MetricChoice",
    "OutputFidelity",
    "Texts",
    "Trial",
    "Verdict",
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
    "worse",
]
