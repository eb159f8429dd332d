"""Networks on disk, and the network that an embedding pass uses."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from shardsieve._errors import ShardsieveError
from shardsieve.train.config import TrainConfig
from shardsieve.train.nets import check_model, load_model, with_trunk
from shardsieve.train.runfolder import MODEL, RunFolder

# Of a run's `model.pt`, what a network is made by.
_MAYBE = (int, type(None))
_TOLD: dict[str, Any] = {"spec": str, "num_classes": int, "weights": dict}
_TOLD |= {"size": _MAYBE, "channels": _MAYBE}


class Encoder(NamedTuple):
    """A network and the images it wants.

    Attributes:
        network: In evaluation mode, on the CPU.
        size: Pixels per side; None leaves it to the images.
        channels: 3 or 1; None likewise.
        normalise: As in `normalised`.
        num_classes: Its outputs, where a run made it; None of another network.
        pseudo_labels: Those that the run was trained on, if any.
        snapshots: The run's network after earlier epochs, by their number, ascending.
        seeds: Digest of the samples that a run trained it on; None if a policy chose them.
        cost: What a seed run took, as `Cost.to_dict`.
    """

    network: nn.Module
    size: int | None
    channels: int | None
    normalise: str = "half"
    num_classes: int | None = None
    pseudo_labels: str | None = None
    snapshots: Mapping[int, nn.Module] = MappingProxyType({})
    seeds: str | None = None
    cost: Mapping[str, Any] | None = None

    def classifiers(self, num_classes: int) -> list[nn.Module]:
        """Return the networks, earlier epochs first, if they tell at least so many classes."""
        if self.num_classes is None or self.num_classes < num_classes:
            return []
        return [*self.snapshots.values(), self.network]


def save_network(
    run: RunFolder, network: nn.Module, config: TrainConfig, classes: int, *, epoch: int = 0
) -> None:
    """Write a trained network to the run's `model.pt`, or its state after an earlier epoch."""
    how = {"spec": config.model, "num_classes": classes}
    seen: dict[str, Any] = {"size": config.size, "channels": config.channels}
    seen |= {"normalise": config.normalise, "pseudo_labels": config.pseudo_labels}
    name = f"model-{epoch:04d}.pt" if epoch else MODEL
    run.save(name, {**how, **seen, "weights": network.state_dict()})


def check_encoder(model: str) -> None:
    """Refuse a name that `load_encoder` would refuse, without loading a network.

    Raises:
        ShardsieveError: If there is no such model.
    """
    path = Path(model)
    if not path.is_dir() and path.suffix != ".pt":
        check_model(model)


def load_encoder(
    model: str,
    *,
    weights: Path | None = None,
    num_classes: int | None = None,
    channels: int | None = None,
    normalise: str = "half",
) -> Encoder:
    """Return the network that `model` names.

    Args:
        model: A run's folder or its `model.pt`; or what `load_model` takes.
        weights: A checkpoint of tensors to load into a model of `load_model`.
        num_classes: For a model of `load_model`, as there; its first weights are the same at every
            call.
        channels: For a built-in model.
        normalise: For a model of `load_model`, as in `normalised`; a run has its own.

    Raises:
        ShardsieveError: If the model is not there or the weights do not fit.
    """
    path = Path(model)
    if path.is_dir():
        path = path / MODEL
    if path.suffix == ".pt":
        return _of_run(path)
    # What no checkpoint sets has to be the same on every rank, and when a killed pass goes on.
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = load_model(model, num_classes, channels or 3)
    if weights is not None:
        _load_weights(network, weights)
    return Encoder(network.eval(), None, channels, normalise)


def _of_run(path: Path) -> Encoder:
    run = RunFolder(path.parent)
    held = run.load(path.name)
    if held is None:
        raise ShardsieveError(f"no network at {path}; finish `shardsieve score` first")
    network, snapshots = _network(path, held), {}
    if path.name == MODEL:
        for earlier in sorted(path.parent.glob("model-*.pt")):
            epoch = int(earlier.stem.removeprefix("model-"))
            snapshots[epoch] = _network(earlier, run.load(earlier.name))
    seen = held["size"], held["channels"], held.get("normalise", "half")
    told = int(held["num_classes"]), held.get("pseudo_labels")
    of, result = run.identity() or {}, run.result() or {}
    # A run on a keep set has its cost in its own ledger.
    learned = (of["seeds"], result.get("cost")) if "seeds" in of else (of.get("keep"),)
    return Encoder(with_trunk(network, told[0]), *seen, *told, snapshots, *learned)


def _network(path: Path, held: Any) -> nn.Module:
    told = held if isinstance(held, dict) else {}
    # Or who made the file would say what is called with what: `os.system` takes a text.
    if not all(isinstance(told.get(name, ...), kind) for name, kind in _TOLD.items()):
        raise ShardsieveError(
            f"{path} holds no network of a run; give a checkpoint of your own as --weights, beside "
            "--model package.module:factory"
        )
    network = load_model(told["spec"], told["num_classes"], told["channels"] or 3)
    try:
        network.load_state_dict(told["weights"])
    except RuntimeError as error:
        raise _unfit(path, error) from error
    return network.eval()


def _load_weights(network: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise ShardsieveError(f"no checkpoint at {path}; check the path")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(held.get("state_dict", held))
    except Exception as error:
        raise _unfit(path, error) from error


def _unfit(path: Path, error: Exception) -> ShardsieveError:
    first = str(error).splitlines()[0]
    return ShardsieveError(f"checkpoint {path} does not fit the model: {first}")
