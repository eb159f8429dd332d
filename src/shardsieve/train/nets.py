"""Image classifiers, small and usual, and loading of anybody's own."""

import inspect
from collections.abc import Callable

import torch
from torch import Tensor, nn

from shardsieve._errors import ShardsieveError
from shardsieve.train.factories import load_factory

SMALLEST = {"light": 4}  # two poolings halve its sides
"""Pixels per side that a built-in model needs, if more than one."""


def check_size(model: str, pixels: int) -> None:
    """Refuse images that are too small for a built-in model."""
    if pixels < SMALLEST.get(model, 1):
        raise ValueError(
            f"size must be at least {SMALLEST[model]} pixels for model {model}, got {pixels}; give "
            "a larger size, or another model"
        )


class ImageNet(nn.Module):
    """An image classifier in two parts: `classifier(features(x))`.

    Attributes:
        body: Maps (n, c, h, w) to feature maps.
        classifier: Linear layer on the pooled maps.
        smallest: Pixels that a side of an image has at least.
    """

    def __init__(self, body: nn.Module, dim: int, num_classes: int, smallest: int = 1) -> None:
        super().__init__()
        self.body, self.classifier = body, nn.Linear(dim, num_classes)
        self.smallest = smallest

    def features(self, images: Tensor) -> Tensor:
        """Return the penultimate embedding, float32 (n, d); ValueError for too small images."""
        if min(images.shape[2:]) < self.smallest:
            height, width = images.shape[2:]
            raise ValueError(
                f"size must be at least {self.smallest} pixels for this network, got images of "
                f"{width} x {height}; give a larger size or another model"
            )
        maps: Tensor = self.body(images)
        return maps.mean(dim=(2, 3)).float()

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (n, num_classes)."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


def _shortcut(before: int, after: int, stride: int) -> nn.Module:
    """Return what brings the input of a block to the shape of its output."""
    if stride == 1 and before == after:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after))


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.first = _conv(before, after, stride)
        self.second = nn.Sequential(
            nn.Conv2d(after, after, 3, padding=1, bias=False), nn.BatchNorm2d(after)
        )
        self.shortcut = _shortcut(before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps (n, after, h / stride, w / stride)."""
        return torch.relu(self.second(self.first(x)) + self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the stride lies in the middle."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        after = 4 * width
        self.body = nn.Sequential(
            _conv(before, width, 1, side=1),
            _conv(width, width, stride),
            nn.Conv2d(width, after, 1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut = _shortcut(before, after, stride)

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps (n, 4 * width, h / stride, w / stride)."""
        return torch.relu(self.body(x) + self.shortcut(x))


def light(num_classes: int, in_channels: int = 3) -> ImageNet:
    """Return a net of about 110k parameters that CPUs train in minutes on 8 to 64 pixels.

    >>> sum(p.numel() for p in light(10).parameters())
    113570
    """
    body = nn.Sequential(
        _conv(in_channels, 24, 1),
        nn.MaxPool2d(2),
        _conv(24, 48, 1),
        nn.MaxPool2d(2),
        _conv(48, 64, 1),
        Block(64, 64, 1),
    )
    return ImageNet(body, 64, num_classes, smallest=SMALLEST["light"])


def resnet18(num_classes: int, in_channels: int = 3) -> ImageNet:
    """Return ResNet-18 in its CIFAR form: a 3x3 stem without stride or pooling."""
    layers: list[nn.Module] = [_conv(in_channels, 64, 1)]
    before = 64
    for after, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [Block(before, after, stride), Block(after, after, 1)]
        before = after
    return ImageNet(nn.Sequential(*layers), 512, num_classes)


def resnet50(num_classes: int, in_channels: int = 3) -> ImageNet:
    """Return ResNet-50 in its ImageNet form: a 7x7 stem with stride and pooling.

    >>> sum(p.numel() for p in resnet50(1000).parameters())  # as torchvision's
    25557032
    """
    layers: list[nn.Module] = [_conv(in_channels, 64, 2, side=7), nn.MaxPool2d(3, 2, padding=1)]
    before = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            layers.append(Bottleneck(before, width, stride if block == 0 else 1))
            before = 4 * width
    net = ImageNet(nn.Sequential(*layers), before, num_classes)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


MODELS: dict[str, Callable[[int, int], ImageNet]] = {
    "light": light,
    "resnet18": resnet18,
    "resnet50": resnet50,
}


def check_model(spec: str) -> None:
    """Refuse a name that `load_model` would refuse, without making a network.

    Raises:
        ShardsieveError: If there is no such model.
    """
    if spec not in MODELS:
        load_factory("model", spec, MODELS)


_IMAGENET_CLASSES = 1000


def load_model(spec: str, num_classes: int | None, in_channels: int = 3) -> nn.Module:
    """Return the model that `spec` names.

    Args:
        spec: `light`, `resnet18`, `resnet50`, or `package.module:factory`. A factory is called with
            `num_classes` by name where it has a parameter of that name, else as its first argument
            where it takes one, else by name where it takes any (as torchvision's do), and with
            nothing otherwise.
        num_classes: Outputs; None leaves them to the factory, and is 1000 where it must be told.
        in_channels: For the built-in models.

    Raises:
        ShardsieveError: If there is no such model, or it is no `torch.nn.Module`.
    """
    if spec in MODELS:
        return MODELS[spec](num_classes or _IMAGENET_CLASSES, in_channels)
    model = _made_for(load_factory("model", spec, MODELS), num_classes)
    if not isinstance(model, nn.Module):
        raise ShardsieveError(f"model {spec!r} must give a torch.nn.Module, got {type(model)}")
    return model


class Trunk(nn.Module):
    """Anybody's classifier, which embeds an image as what its last linear layer is given."""

    def __init__(self, network: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.network = network
        self._head = (head,)  # a part of the network already

    def both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings (n, d) and the logits, both float32."""
        given: list[Tensor] = []
        hook = self._head[0].register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
        try:
            logits: Tensor = self.network(images)
        finally:
            hook.remove()
        return (given[-1] if given else logits).flatten(1).float(), logits.float()

    def features(self, images: Tensor) -> Tensor:
        """Return the embeddings, float32 (n, d)."""
        return self.both(images)[0]

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.network(images)
        return logits


def with_trunk(network: nn.Module, num_classes: int) -> nn.Module:
    """Return a classifier that can embed: itself where it has `features`, or no linear head."""
    if _has_features(network):
        return network
    linear = [part for part in network.modules() if isinstance(part, nn.Linear)]
    heads = [layer for layer in linear if layer.out_features == num_classes]
    return Trunk(network, heads[-1]) if heads else network


def _has_features(model: nn.Module) -> bool:
    # Many torchvision models call their convolutions `features`: a module is not the embedding.
    features = getattr(model, "features", None)
    return callable(features) and not isinstance(features, nn.Module)


def embed_batch(model: nn.Module, images: Tensor) -> Tensor:
    """Return `model.features(images)` where there is one, else the flattened output, float32."""
    output: Tensor = model.features(images) if _has_features(model) else model(images)  # type: ignore[operator]
    return output.flatten(1).float()


def embed_and_classify(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return `embed_batch(model, images)` and the logits `model(images)`, both float32.

    The trunk of this project's own networks runs once for both.
    """
    if isinstance(model, Trunk):
        return model.both(images)
    if isinstance(model, ImageNet):
        points = model.features(images)
        return points, model.classifier(points).float()
    return embed_batch(model, images), model(images).float()


def answer_to_black(
    call: Callable[[Tensor], Tensor], shape: tuple[int, int, int], device: torch.device
) -> Tensor:
    """Return what a network makes of two black images: one may be a special case.

    Args:
        call: The network, or a part of it.
        shape: Of the image, (c, h, w).
        device: The network's.

    Raises:
        ShardsieveError: If it cannot take images of that shape.
    """
    try:
        return call(torch.zeros((2, *shape), device=device))
    except RuntimeError as error:
        first = str(error).strip().partition("\n")[0]
        raise ShardsieveError(
            f"the network cannot take images of shape {shape} ({first}); give other channels, "
            "another size, or another network"
        ) from error


def _made_for(factory: Callable[..., object], num_classes: int | None) -> object:
    if num_classes is None:
        return factory() if _takes(factory) else _made_for(factory, _IMAGENET_CLASSES)
    named = {"num_classes": num_classes}
    if _has_parameter(factory, "num_classes") and _takes(factory, **named):
        return factory(**named)
    if _takes(factory, num_classes):
        return factory(num_classes)
    return factory(**named) if _takes(factory, **named) else factory()


def _takes(factory: Callable[..., object], *args: object, **named: object) -> bool:
    try:
        inspect.signature(factory).bind(*args, **named)
    except (TypeError, ValueError):
        return False
    return True


def _has_parameter(factory: Callable[..., object], name: str) -> bool:
    try:
        return name in inspect.signature(factory).parameters
    except (TypeError, ValueError):
        return False


def _conv(before: int, after: int, stride: int, *, side: int = 3) -> nn.Sequential:
    convolution = nn.Conv2d(before, after, side, stride, padding=side // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(after), nn.ReLU(inplace=True))
