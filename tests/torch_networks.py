"""Networks of PyTorch's for the row analysis: usual ones, and ones that mix the rows of a batch."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from tests.torch_models import nn, torch

ROWS: Final = 3
F: Any = torch.nn.functional


def module(forward: Callable[..., Any], **parts: Any) -> Any:
    """A module that computes this of its parts and its inputs."""

    class Computed(nn.Module):  # type: ignore[misc]  # PyTorch is not always there
        computed = True

        def __init__(self) -> None:
            super().__init__()
            for name, part in parts.items():
                setattr(self, name, part)

        def forward(self, x: torch.Tensor) -> Any:
            return forward(self, x)

    return Computed()


def written(change: Callable[[Any], object]) -> Any:
    """A module that gives its input after a change in place."""

    def forward(_: Any, x: Any) -> Any:
        y = x * 2
        change(y)
        return y

    return module(forward)


def set_first_row(y: Any) -> None:
    y[0] = 0


def set_first_of_view(y: Any) -> None:
    y.view(-1)[0] = 5


def add_to_next(y: Any) -> None:
    y[1:] += y[:-1].clone()


def swap_rows(y: Any) -> None:
    y.copy_(y.flip(0))


def add_row_sum(y: Any) -> None:
    y.transpose(0, 1)[0] += y.sum()


def transposed_write(y: Any) -> None:
    y.transpose(0, 1).mul_(torch.cumsum(y, 0).transpose(0, 1))


def coupled_by_a_rare_value() -> Any:
    """A module that halves all rows where one of them has a value that no probe tries."""
    return module(lambda _, x: torch.where(x.max() > 1e12, x / 2, x)).eval()


FLOATS: Final = (6, 4)
MIXING: Final[Mapping[str, Callable[[], Any]]] = {
    "values by the largest": lambda: module(lambda _, x: torch.where(x.max() > 1, x / 255, x)),
    "batch mean": lambda: module(lambda _, x: x - x.mean(0)),
    "mean of all": lambda: module(lambda _, x: x - x.mean()),
    "batch deviation": lambda: module(lambda _, x: x / x.std(0, keepdim=True)),
    "cumulative": lambda: module(lambda _, x: x.cumsum(0)),
    "softmax over rows": lambda: module(lambda _, x: torch.softmax(x, dim=0)),
    "gram": lambda: module(lambda _, x: x.flatten(1) @ x.flatten(1).t()),
    "flattened softmax": lambda: module(
        lambda _, x: torch.softmax(x.flatten(), 0).reshape(x.shape)
    ),
    "training norm": lambda: module(lambda _, x: F.batch_norm(x, None, None, training=True)),
    "sorted rows": lambda: module(lambda _, x: x.sort(0)[0]),
    "ranks": lambda: module(lambda _, x: x.argsort(0).argsort(0)),
    "rolled": lambda: module(lambda _, x: torch.roll(x, 1, 0)),
    "rolled flat": lambda: module(lambda _, x: torch.roll(x, 1)),
    "reversed": lambda: module(lambda _, x: x.flip(0)),
    "neighbour": lambda: module(lambda _, x: torch.cat([x[1:], x[:1]])),
    "rows looked up": lambda: module(lambda _, x: x[x[:, 0, 0].abs().long() % x.shape[0]]),
    "row zero": lambda: module(lambda _, x: x + x[0]),
    "distances": lambda: module(lambda _, x: torch.cdist(x.flatten(1), x.flatten(1))),
    "position": lambda: module(lambda _, x: x + torch.arange(x.shape[0])[:, None, None]),
    "position table": lambda: module(
        lambda m, x: x + m.table(torch.arange(x.shape[0]))[:, None], table=nn.Embedding(64, 4)
    ),
    "count": lambda: module(lambda _, x: x / x.shape[0]),
    "count added": lambda: module(lambda _, x: x + x.size(0) * 2),
    "fixed table": lambda: module(lambda _, x: x + torch.linspace(0, 1, x.shape[0])[:, None, None]),
    "largest over rows": lambda: module(lambda _, x: x * x.max(0)[0]),
    "top over rows": lambda: module(lambda _, x: x + x.topk(1, 0)[0]),
    "folded": lambda: module(lambda _, x: x.reshape(2, -1, 6, 4).sum(0)),
    "blocks": lambda: module(lambda _, x: x.reshape(-1, 8).softmax(0).reshape(x.shape)),
    "attention over rows": lambda: module(
        lambda _, x: F.scaled_dot_product_attention(*[x.transpose(0, 1)] * 3).transpose(0, 1)
    ),
    "sequence of rows": lambda: module(lambda m, x: m.net(x)[0], net=nn.LSTM(4, 5)),
    "conv over rows": lambda: module(
        lambda m, x: m.net(x.permute(1, 2, 0)).permute(2, 0, 1), net=nn.Conv1d(4, 4, 3, padding=1)
    ),
    "norm over rows": lambda: module(lambda _, x: F.normalize(x, dim=0)),
    "einsum": lambda: module(lambda _, x: torch.einsum("bij,cij->bc", x, x)),
    "outer sum": lambda: module(lambda _, x: (x[None] + x[:, None]).sum(1)),
    "mixed by tril": lambda: module(lambda _, x: x.permute(1, 0, 2).tril().permute(1, 0, 2)),
    "dropout": lambda: module(lambda _, x: F.dropout(x, 0.5, training=True)),
    "noise": lambda: module(lambda _, x: x + torch.rand_like(x)),
    "first row set": lambda: written(set_first_row),
    "first element of a view": lambda: written(set_first_of_view),
    "added to the next": lambda: written(add_to_next),
    "copied backwards": lambda: written(swap_rows),
    "sum added in a view": lambda: written(add_row_sum),
    "cumulative in a view": lambda: written(transposed_write),
    "scattered": lambda: module(
        lambda _, x: torch.zeros_like(x).scatter_add(0, (x.abs().long() % x.shape[0]), x)
    ),
    "squeezed": lambda: module(lambda _, x: x.mean((1, 2), keepdim=True).squeeze().softmax(0)),
}
"""By name, modules whose rows depend on other rows, on their number or on chance."""
NOT_EXPORTED: Final = frozenset({"fixed table", "sequence of rows"})
"""Of these, ones that `torch.export` takes for one number of rows only."""


class Block(nn.Module):  # type: ignore[misc]  # PyTorch is not always there
    """A block of ResNet."""

    def __init__(self, inner: int, outer: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outer)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outer, outer, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outer)
        self.downsample = None
        if stride != 1 or inner != outer:
            self.downsample = nn.Sequential(
                nn.Conv2d(inner, outer, 1, stride, bias=False), nn.BatchNorm2d(outer)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        identity = x
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            identity = self.downsample(x)
        y += identity
        return self.relu(y)


class ResNet(nn.Module):  # type: ignore[misc]  # as above
    """ResNet-18 with fewer channels, written as torchvision writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        sizes = [(8, 8, 1), (8, 16, 2), (16, 32, 2), (32, 64, 2)]
        self.layers = nn.Sequential(
            *(
                nn.Sequential(Block(inner, outer, stride), Block(outer, outer, 1))
                for inner, outer, stride in sizes
            )
        )
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = torch.flatten(self.avgpool(self.layers(x)), 1)
        return self.fc(x)


class SelfAttention(nn.Module):  # type: ignore[misc]  # as above
    """Attention as BERT's first implementation writes it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.width = width // heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(x.size(0), x.size(1), self.heads, self.width).permute(0, 2, 1, 3)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(self.query(x)), self.split(self.key(x)), self.split(self.value(x))
        scores = torch.matmul(q, k.transpose(-1, -2)) / math.sqrt(self.width) + mask
        y = torch.matmul(torch.softmax(scores, dim=-1), v).permute(0, 2, 1, 3).contiguous()
        return self.norm(self.out(y.view(y.size(0), y.size(1), -1)) + x)


class Bert(nn.Module):  # type: ignore[misc]  # as above
    """An encoder of two layers with positions, a mask and the first token's pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 16, padding_idx=0)
        self.register_buffer("position_ids", torch.arange(32).expand((1, -1)))
        self.positions = nn.Embedding(32, 16)
        self.norm = nn.LayerNorm(16)
        self.dropout = nn.Dropout(0.1)
        self.first = SelfAttention(16, 4)
        self.second = SelfAttention(16, 4)
        self.wide = nn.Linear(16, 32)
        self.narrow = nn.Linear(32, 16)
        self.pooler = nn.Linear(16, 16)

    def forward(self, ids: torch.Tensor, attention: torch.Tensor) -> tuple[Any, Any]:
        mask = (1.0 - attention[:, None, None, :].to(torch.float32)) * -10000.0
        x = self.words(ids) + self.positions(self.position_ids[:, : ids.size(1)])
        x = self.dropout(self.norm(x))
        x = self.second(self.first(x, mask), mask)
        x = x + self.narrow(F.gelu(self.wide(x)))
        return x, torch.tanh(self.pooler(x[:, 0]))


class Tagger(nn.Module):  # type: ignore[misc]  # as above
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 8)
        self.net = nn.LSTM(8, 6, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        y, _ = self.net(self.words(ids))
        return self.head(y)


class Bag(nn.Module):  # type: ignore[misc]  # as above
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(50, 8, mode="mean")
        self.head = nn.Linear(8, 3)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.bag(ids))


class Encoder(nn.Module):  # type: ignore[misc]  # as above
    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=batch_first)
        self.net = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.batch_first = batch_first

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.batch_first:
            return self.net(x)
        return self.net(x.transpose(0, 1)).transpose(0, 1)


class Unet(nn.Module):  # type: ignore[misc]  # as above
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 8, 3, 2, 1)
        self.norm = nn.GroupNorm(2, 8)
        self.up = nn.ConvTranspose2d(8, 4, 2, 2)
        self.out = nn.Conv2d(7, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.silu(self.norm(self.down(x)))
        wide = F.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
        y = self.up(y) + wide[:, :4]
        return self.out(torch.cat([x, y], dim=1)).softmax(1)


class LastToken(nn.Module):  # type: ignore[misc]  # as above
    """Each row's vector at its own last token, as CLIP takes it."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 8)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.words(ids)
        return x[torch.arange(x.shape[0]), ids.argmax(dim=-1)]


class Rotary(nn.Module):  # type: ignore[misc]  # as above
    """Rotary positions, computed without gradients, and causal attention."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("inverse", 1.0 / 100 ** (torch.arange(0, 4, 2).float() / 4))
        self.project = nn.Linear(16, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(x.size(1), device=x.device)[None, :].expand(x.size(0), -1)
        with torch.no_grad():
            inverse = self.inverse[None, :, None].float().expand(positions.shape[0], -1, 1)
            angles = (inverse @ positions[:, None, :].float()).transpose(1, 2)
            both = torch.cat((angles, angles), dim=-1)
            cosine, sine = both.cos()[:, None], both.sin()[:, None]
        parts = self.project(x).view(x.size(0), x.size(1), 12, 4).transpose(1, 2).chunk(3, dim=1)
        turned = [
            part * cosine + torch.cat((-part[..., 2:], part[..., :2]), dim=-1) * sine
            for part in parts[:2]
        ]
        y = F.scaled_dot_product_attention(turned[0], turned[1], parts[2], is_causal=True)
        return y.transpose(1, 2).reshape(x.size(0), x.size(1), 16)


class InPlace(nn.Module):  # type: ignore[misc]  # as above
    """Writes to columns of its own values, and to views of them."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y[:, 0] = 0
        y[:, 1:3] += x[:, 2:4]
        y.view(y.size(0), -1).clamp_(-3.0, 3.0)
        y.masked_fill_(y > 2, 1.0)
        return y


def _perceptron() -> Any:
    return nn.Sequential(
        nn.Linear(5, 8),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(8, 3),
        nn.Softmax(1),
    )


def _convolutional() -> Any:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(6, 8, 3, stride=2),
        nn.LeakyReLU(0.1),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def _ids(rows: int) -> Any:
    return torch.randint(1, 50, (rows, 7))


def _pixels(size: int) -> Callable[[int], Any]:
    return lambda rows: torch.randn(rows, 3, size, size)


def _tokens(rows: int) -> Any:
    return torch.randn(rows, 6, 16)


def _pairs(rows: int) -> tuple[Any, Any]:
    mask = torch.ones(rows, 7, dtype=torch.long)
    mask[0, 4:] = 0
    return _ids(rows), mask


USUAL: Final[Mapping[str, tuple[Callable[[], Any], Callable[[int], Any]]]] = {
    "perceptron": (_perceptron, lambda rows: torch.randn(rows, 5)),
    "convolutional": (_convolutional, _pixels(12)),
    "resnet": (ResNet, _pixels(40)),
    "unet": (Unet, _pixels(16)),
    "bert": (Bert, _pairs),
    "encoder": (lambda: Encoder(batch_first=True), _tokens),
    "encoder, rows on axis 1": (lambda: Encoder(batch_first=False), _tokens),
    "tagger": (Tagger, _ids),
    "bag": (Bag, _ids),
    "last token": (LastToken, _ids),
    "rotary": (Rotary, _tokens),
    "in place": (InPlace, lambda rows: torch.randn(rows, 5)),
    "shuffled pixels": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.PixelShuffle(2), nn.PReLU()),
        _pixels(6),
    ),
    "gru": (
        lambda: module(
            lambda m, x: m.net(x)[1].transpose(0, 1), net=nn.GRU(16, 4, batch_first=True)
        ),
        _tokens,
    ),
    "statistics of a row": (
        lambda: module(
            lambda _, x: torch.stack([x.mean((1, 2)), x.std((1, 2)), x.amax((1, 2))], dim=1)
        ),
        _tokens,
    ),
    "gathered": (lambda: module(lambda _, x: x.gather(1, x.argsort(1))), _tokens),
}
"""By name, what makes a network, and what makes its inputs; all have independent rows."""


def inputs(example: Callable[[int], Any], rows: int) -> tuple[Any, ...]:
    """What a network takes, for so many rows."""
    made = example(rows)
    return made if isinstance(made, tuple) else (made,)


def outputs(answer: Any) -> list[Any]:
    """The tensors that a network gives."""
    return list(answer) if isinstance(answer, tuple | list) else [answer]
