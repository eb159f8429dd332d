"""The options that several commands share: their types and help texts."""

from pathlib import Path
from typing import Annotated

import typer

from shardsieve.commands.texts import refuse_url


def local_path(param: typer.CallbackParam, path: Path | None) -> Path | None:
    """Return a path that is no URL: as a path it has lost a slash.

    Raises:
        ValueError: If it names an object.
    """
    name = param.opts[0] if param.param_type_name == "option" else str(param.name).upper()
    refuse_url(name, path)
    return path


def usable_augment(augment: str) -> str:
    """Return a setting of `augment`; see `check_augment`."""
    from shardsieve.train.transforms import check_augment

    return check_augment(augment)


StorePath = Annotated[
    Path, typer.Option("--store", help="Folder of the Zarr store.", callback=local_path)
]
HeldOut = Annotated[float, typer.Option(help="Share of the seeds to try the network on.")]
Snapshots = Annotated[int, typer.Option(help="Networks of the seed run to keep.")]
MatchSteps = Annotated[
    int | None,
    typer.Option(help="As many steps, and windows as long, as in a full run of so many epochs."),
]
LabelMember = Annotated[
    str | None, typer.Option(help="Suffix of the members that hold labels: cls, or the store's.")
]
KeepFraction = Annotated[float, typer.Option(help="Share of all samples to keep, in (0, 1].")]
ScoreName = Annotated[str | None, typer.Option(help="Stored score to keep by.")]
Method = Annotated[str, typer.Option(help="knn, gnn, direct or fused")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Model = Annotated[str, typer.Option(help="light, resnet18, resnet50 or package.module:factory")]
BatchSize = Annotated[int, typer.Option(help="Samples per process and step.")]
Rate = Annotated[float, typer.Option(help="Peak learning rate.")]
Augment = Annotated[
    str,
    typer.Option(
        help="none, crop, flip (crop and mirror), resized, trivial, rand or package.module:factory",
        callback=usable_augment,
    ),
]
Size = Annotated[
    int | None, typer.Option(help="Pixels per side; if none the first image's, at most 224.")
]
Channels = Annotated[int | None, typer.Option(help="3 or 1; the first image's if none.")]
Precision = Annotated[str, typer.Option(help="no, bf16 or fp16")]
Workers = Annotated[int, typer.Option(help="Loader processes per process.")]
Seed = Annotated[int, typer.Option(help="Seed of every draw.")]
EmbeddingName = Annotated[
    str | None, typer.Option(help="Name of a stored embedding; the only one if none.")
]
PseudoLabels = Annotated[
    str | None, typer.Option(help="Stored pseudo-labels to train on, not the labels.")
]
Unreadable = Annotated[int, typer.Option(help="Samples to skip if they cannot be read.")]
Rule = Annotated[
    str,
    typer.Option(help="top, random, stratified, class_balanced, ccs, beta, moderate, threshold"),
]
Threshold = Annotated[float | None, typer.Option(help="threshold: the lowest score kept.")]
ClassFloor = Annotated[
    int, typer.Option(help="class_balanced, stratified: the fewest of every class.")
]
HardCutoff = Annotated[float | None, typer.Option(help="ccs: share to drop as too hard.")]
Difficulty = Annotated[str | None, typer.Option(help="ccs, beta: the score that says how hard.")]
Bins = Annotated[
    int | None, typer.Option(help="ccs, stratified: ranges of the score, 50 by default.")
]
RuleEmbedding = Annotated[str | None, typer.Option(help="moderate: which, if there are several.")]
StoredKeepSet = Annotated[str | None, typer.Option(help="Stored keep set, in place of a rule.")]
DropMissing = Annotated[bool, typer.Option(help="Never keep samples without a score.")]
