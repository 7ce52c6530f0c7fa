"""The networks that go by a name: those of the papers that are compared, layer by layer as they were published."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

Shape = tuple[int, int, int]
Build = Callable[[Shape, int, int], list[nn.Module]]
"""From ``(C, H, W)``, the number of classes and the width to the layers of a ``Sequential``."""


@dataclass(frozen=True)
class Architecture:
    """A network that goes by a name.

    Attributes:
        about: what it is, in a line.
        build: gives its layers.
        width: its published width: channels of the first convolution, or neurons of a hidden layer without any.
        input_shape: the only shape ``(C, H, W)`` it takes; None for any.
        least: least height and width it takes.
        classes: number of classes that it was published for.
    """

    about: str
    build: Build
    width: int
    input_shape: Shape | None = None
    least: int = 1
    classes: int = 10


class Residual(nn.Module):
    """Two paths, added: two convolutions with a ReLU between, and one convolution past them; a ReLU after.

    Args:
        inputs: channels that come in.
        outputs: channels that go out.
        down: halve height and width.

    Source: Wong et al. 2018, arXiv 1805.12514; Wang et al. 2018, arXiv 1811.02625.
    """

    def __init__(self, inputs: int, outputs: int, *, down: bool) -> None:
        super().__init__()
        first, stride, skip = (4, 2, 2) if down else (3, 1, 1)
        self.long = nn.Sequential(
            nn.Conv2d(inputs, outputs, first, stride, padding=1), nn.ReLU(), nn.Conv2d(outputs, outputs, 3, padding=1)
        )
        self.short = nn.Conv2d(inputs, outputs, skip, stride)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map images of shape ``(B, C, H, W)``."""
        total: Tensor = self.relu(self.long(x) + self.short(x))
        return total


def conv_net(
    convs: Sequence[tuple[int, int, int]], hidden: Sequence[int], *, batch_norm: bool = False, padding: int = 1
) -> Build:
    """Stack convolutions and fully connected layers, a ReLU after each but the last.

    Args:
        convs: of each convolution its channels in widths, its kernel and its stride.
        hidden: neurons of each hidden fully connected layer; 0 for the width.
        batch_norm: normalise before every ReLU.
        padding: of every convolution.
    """

    def build(input_shape: Shape, classes: int, width: int) -> list[nn.Module]:
        layers: list[nn.Module] = []
        channels, *sides = input_shape
        for widths, kernel, stride in convs:
            layers.append(nn.Conv2d(channels, widths * width, kernel, stride, padding))
            channels, sides = widths * width, [(side + 2 * padding - kernel) // stride + 1 for side in sides]
            layers += [nn.BatchNorm2d(channels), nn.ReLU()] if batch_norm else [nn.ReLU()]
        layers.append(nn.Flatten())
        features = channels * math.prod(sides)
        for size in (one or width for one in hidden):
            layers.append(nn.Linear(features, size))
            layers += [nn.BatchNorm1d(size), nn.ReLU()] if batch_norm else [nn.ReLU()]
            features = size
        return [*layers, nn.Linear(features, classes)]

    return build


def residual_net(blocks: Sequence[tuple[int, bool]], hidden: int, *, wide_stem: bool = False) -> Build:
    """Stack a convolution, residual blocks and two fully connected layers.

    Args:
        blocks: of each block its channels in widths, and whether it halves the image.
        hidden: neurons of the hidden fully connected layer.
        wide_stem: begin with a 7x7 convolution of stride 2 rather than a 3x3 one.
    """

    def build(input_shape: Shape, classes: int, width: int) -> list[nn.Module]:
        channels, *sides = input_shape
        kernel, stride, padding = (7, 2, 3) if wide_stem else (3, 1, 1)
        layers: list[nn.Module] = [nn.Conv2d(channels, width, kernel, stride, padding), nn.ReLU()]
        channels, sides = width, [(side + 2 * padding - kernel) // stride + 1 for side in sides]
        for widths, down in blocks:
            layers.append(Residual(channels, widths * width, down=down))
            channels, sides = widths * width, [side // 2 if down else side for side in sides]
        features = channels * math.prod(sides)
        return [*layers, nn.Flatten(), nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes)]

    return build


_SMALL = conv_net([(1, 4, 2), (2, 4, 2)], [100])
_SMALL_BN = conv_net([(1, 4, 2), (2, 4, 2)], [100], batch_norm=True)
_LARGE = conv_net([(1, 3, 1), (1, 4, 2), (2, 3, 1), (2, 4, 2)], [512, 512])
_CNN5 = [(1, 3, 1), (1, 4, 2), (2, 4, 2)]
_CNN7 = [(1, 3, 1), (1, 3, 1), (2, 3, 2), (2, 3, 1), (2, 3, 1)]
_DOWN_FIRST = [(1, True), (1, False), (2, True), (4, True)]

SMALL_IS = "2 convolutions, 2 fully connected layers"
LARGE_IS = "4 convolutions, 3 fully connected layers"
CNN5_IS = "3 convolutions, 2 fully connected layers"
CNN7_IS = "5 convolutions, 2 fully connected layers"

ARCHITECTURES: dict[str, Architecture] = {
    "mnist_small": Architecture(SMALL_IS, _SMALL, 16, (1, 28, 28)),
    "mnist_small_bn": Architecture(f"{SMALL_IS}, batch norm", _SMALL_BN, 16, (1, 28, 28)),
    "mnist_large": Architecture(LARGE_IS, _LARGE, 32, (1, 28, 28)),
    "cifar_small": Architecture(SMALL_IS, _SMALL, 16, (3, 32, 32)),
    "cifar_large": Architecture(LARGE_IS, _LARGE, 32, (3, 32, 32)),
    "cifar_resnet": Architecture(
        "4 residual blocks, the first halves the image, 2 fully connected layers",
        residual_net(_DOWN_FIRST, 1000),
        16,
        (3, 32, 32),
    ),
    "cifar_resnet_wong": Architecture(
        "4 residual blocks, the first keeps the image's size, 2 fully connected layers",
        residual_net([(1, False), *_DOWN_FIRST[1:]], 1000),
        16,
        (3, 32, 32),
    ),
    "imagenet200_resnet": Architecture(
        "4 residual blocks after a 7x7 convolution, 2 fully connected layers",
        residual_net(_DOWN_FIRST, 512, wide_stem=True),
        16,
        (3, 64, 64),
        classes=200,
    ),
    "cnn5": Architecture(CNN5_IS, conv_net(_CNN5, [512]), 16, least=4),
    "cnn5_bn": Architecture(f"{CNN5_IS}, batch norm", conv_net(_CNN5, [512], batch_norm=True), 16, least=4),
    "cnn7": Architecture(CNN7_IS, conv_net(_CNN7, [512]), 64),
    "cnn7_bn": Architecture(f"{CNN7_IS}, batch norm", conv_net(_CNN7, [512], batch_norm=True), 64),
    "digits_small": Architecture(SMALL_IS, conv_net([(1, 3, 1), (2, 4, 2)], [100]), 16, (1, 8, 8)),
    "cnn_small": Architecture(f"{SMALL_IS}, sized to the images", _SMALL, 16, least=4),
    "mlp": Architecture("2 hidden layers of 100 neurons", conv_net([], [0, 0]), 100),
    "mlp5": Architecture("5 hidden layers of 100 neurons", conv_net([], [0] * 5), 100),
}
"""Every architecture by name.

``mnist``, ``cifar`` and ``imagenet200``: Wang et al. 2018, arXiv 1811.02625; ``cifar_resnet_wong``: Wong et al. 2018,
arXiv 1805.12514. ``cnn7``: Gowal et al. 2018, arXiv 1810.12715, with batch norm as in Shi et al. 2021, arXiv
2103.17268. ``cnn5``: Mao et al. 2023, arXiv 2305.04574. ``cnn_small`` is the body of the small ones sized to any input;
``mlp`` and ``mlp5`` have two and five hidden layers.
"""
