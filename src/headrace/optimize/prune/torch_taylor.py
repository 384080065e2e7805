"""First-order estimate of how much the answers would change without each unit, by gradients.

The square of activation times gradient, summed over an example, as Molchanov et al. (CVPR 2019)
score. The gradient is of the cross entropy with the class that the source itself answers, or of the
mean square of the answers where there are no classes.
"""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional as F  # noqa: N812  # so it is called everywhere

from headrace.core import Array, Tensors
from headrace.optimize.candidate import CannotBuildError
from headrace.optimize.prune.graph import Graph
from headrace.optimize.prune.groups import Group
from headrace.optimize.prune.torch_graph import TorchGraph, stacked

_CLASSES: Final = 2
"""Axes of an output that scores classes."""


def taylor_scores(
    graph: Graph, groups: Sequence[Group], examples: Sequence[Tensors]
) -> dict[int, Array]:
    """Scores of units, by the group's place: more is to be kept.

    Raises:
        CannotBuildError: The graph has operators without gradients here, or no output of floats.
    """
    module = TorchGraph(graph)
    scores = {i: np.zeros(group.units) for i, group in enumerate(groups)}
    read = [(i, one) for i, group in enumerate(groups) for one in group.consumers]
    for example in examples:
        values = module.values(stacked([example]))
        inside = [values[consumer.tensor] for _, consumer in read]
        scored = [values[name] for name in graph.outputs if values[name].is_floating_point()]
        if not scored:
            raise CannotBuildError("it has no output of floats, by which units could be scored")
        gradients = torch.autograd.grad(_loss(scored[0]), inside)
        for (i, consumer), tensor, gradient in zip(read, inside, gradients, strict=True):
            layout = consumer.layout
            product = torch.movedim((tensor * gradient).detach(), layout.axis, 0)
            by_unit = product.reshape(layout.outer, layout.units, -1).sum((0, 2))
            scores[i] += by_unit.numpy().astype(np.float64) ** 2
    return scores


def _loss(answers: Any) -> Any:
    if answers.ndim == _CLASSES and answers.shape[1] >= _CLASSES:
        return F.cross_entropy(answers, answers.detach().argmax(1))
    return answers.square().mean()
