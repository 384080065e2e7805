"""Random programs of PyTorch's operators, some of which mix the rows of a batch."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from hypothesis import strategies as st

from tests.torch_models import nn, torch

Step = tuple[str, int, int, int, int]
"""An operator, which tensors it takes, and two numbers: axes, sizes, positions."""
SIZES: Final = (4, 6)
_ROWS: Final = 3


OPERATORS: Final[dict[str, Callable[[Any, Any, int, int], Any]]] = {
    "add": lambda t, u, _, __: t + u,
    "subtract": lambda t, u, _, __: t - u,
    "multiply": lambda t, u, _, __: t * u,
    "tanh": lambda t, *_: torch.tanh(t),
    "scaled": lambda t, _, i, j: t * (i + 1) - j,
    "greater": lambda t, u, _, __: torch.where(t > u, t, u * 2),
    "sum": lambda t, _, i, __: t.sum(i % t.dim()),
    "sum kept": lambda t, _, i, __: t.sum(i % t.dim(), keepdim=True),
    "mean of two": lambda t, _, i, j: t.mean((i % t.dim(), j % t.dim()), keepdim=True),
    "largest": lambda t, _, i, __: t.max(i % t.dim())[0],
    "softmax": lambda t, _, i, __: torch.softmax(t, i % t.dim()),
    "cumulative": lambda t, _, i, __: torch.cumsum(t, i % t.dim()),
    "sorted": lambda t, _, i, __: torch.sort(t, i % t.dim())[0],
    "top": lambda t, _, i, j: torch.topk(t, j % 3 + 1, i % t.dim())[0],
    "transposed": lambda t, _, i, j: t.transpose(i % t.dim(), j % t.dim()),
    "unsqueezed": lambda t, _, i, __: t.unsqueeze(i % (t.dim() + 1)),
    "squeezed": lambda t, _, i, __: t.squeeze(i % t.dim()),
    "flattened": lambda t, _, i, __: t.flatten(i % t.dim()),
    "by rows": lambda t, *_: t.reshape(t.size(0), -1),
    "rows behind": lambda t, _, i, __: t.reshape(i % 3 + 1, t.size(0), -1),
    "halved": lambda t, *_: t.reshape(t.size(0), 2, -1),
    "merged": lambda t, *_: t.reshape(t.size(0) * t.size(1), -1),
    "unmerged": lambda t, _, i, __: t.reshape(-1, SIZES[i % 2], t.size(-1)),
    "in the other's shape": lambda t, u, _, __: t.reshape(u.shape),
    "selected": lambda t, _, i, j: t.select(i % t.dim(), j % 3),
    "last": lambda t, _, i, __: t.select(i % t.dim(), -1),
    "cut": lambda t, _, i, j: t.narrow(i % t.dim(), j % 2, 2),
    "behind": lambda t, _, i, j: t.transpose(0, i % t.dim())[j % 3 :].transpose(0, i % t.dim()),
    "joined": lambda t, u, i, __: torch.cat([t, u], i % t.dim()),
    "stacked": lambda t, u, i, __: torch.stack([t, u], i % (t.dim() + 1)),
    "product": lambda t, u, _, __: torch.matmul(t, u),
    "product turned": lambda t, u, _, __: torch.matmul(t, u.transpose(-1, -2)),
    "expanded": lambda t, u, _, __: t.expand(u.shape),
    "repeated": lambda t, _, i, __: t.repeat(
        *[2 if i % t.dim() == a else 1 for a in range(t.dim())]
    ),
    "rolled": lambda t, _, i, j: torch.roll(t, j, i % t.dim()),
    "turned": lambda t, _, i, __: torch.flip(t, [i % t.dim()]),
    "padded": lambda t, _, i, j: nn.functional.pad(t, [0, 0] * (i % t.dim()) + [j % 2, 1]),
    "normalised": lambda t, *_: nn.functional.layer_norm(t, t.shape[-1:]),
    "triangle": lambda t, *_: torch.tril(t),
    "gathered": lambda t, u, i, __: t.gather(i % t.dim(), u.argsort(i % t.dim())),
    "looked up": lambda t, u, i, __: t.index_select(i % t.dim(), u.flatten()[:2].abs().long() % 2),
    "indexed": lambda t, u, _, __: t[torch.arange(t.size(0)), u.argmax(-1) % 2],
    "positions": lambda t, _, i, __: (
        t
        + torch.arange(t.size(i % t.dim())).reshape(
            [-1 if a == i % t.dim() else 1 for a in range(t.dim())]
        )
    ),
    "divided by a size": lambda t, _, i, __: t / t.size(i % t.dim()),
    "ones": lambda t, _, i, __: t * torch.ones(t.size(i % t.dim()), 1),
    "pooled": lambda t, *_: nn.functional.max_pool1d(t, 2, 1),
    "attended": lambda t, u, *_: nn.functional.scaled_dot_product_attention(t, u, u),
    "copy": lambda t, *_: t.clone(),
    "relu in place": lambda t, *_: t.relu_(),
    "add in place": lambda t, u, *_: t.add_(u),
    "zero in place": lambda t, _, i, j: t.select(i % t.dim(), j % 2).fill_(0.5),
    "copied into": lambda t, u, i, __: t.narrow(i % t.dim(), 0, 2).copy_(
        u.narrow(i % u.dim(), 1, 2).clone()
    ),
    "masked in place": lambda t, u, *_: t.masked_fill_(u > 0, 0.25),
}


def programs() -> st.SearchStrategy[list[Step]]:
    """Programs of some steps."""
    small = st.integers(0, 5)
    step = st.tuples(st.sampled_from(sorted(OPERATORS)), small, small, small, small)
    return st.lists(step, min_size=1, max_size=9)


class Program(nn.Module):  # type: ignore[misc]  # PyTorch is not always there
    """Steps, of which each adds a tensor; those that an example does not fit are left out."""

    def __init__(self, steps: Sequence[Step]) -> None:
        super().__init__()
        self.steps: list[Step] = []
        tensors = self._start(torch.randn(_ROWS, *SIZES))
        for step in steps:
            try:
                result = self._result(step, tensors)
            except (RuntimeError, IndexError, ValueError, TypeError):
                continue
            if result.dim() > 0 and result.numel() < 10_000:  # enough for a test
                self.steps.append(step)
                tensors.append(result)

    @staticmethod
    def _start(x: Any) -> list[Any]:
        return [x * 1, x * 2 - x.flip(2), torch.ones(SIZES)]

    @staticmethod
    def _result(step: Step, tensors: Sequence[Any]) -> Any:
        name, first, second, i, j = step
        # Later tensors are taken more often, so that steps build on each other.
        chosen = [tensors[-1 - number % len(tensors)] for number in (first, second)]
        return OPERATORS[name](chosen[0], chosen[1], i, j)

    def forward(self, x: Any) -> Any:
        tensors = self._start(x)
        for step in self.steps:
            tensors.append(self._result(step, tensors))
        return tensors[-1], tensors[0]
