"""The options that several commands share: their types and help texts."""

from functools import partial
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


# The boxes of `--help`.
keep_option = partial(typer.Option, rich_help_panel="What to keep")
network_option = partial(typer.Option, rich_help_panel="Network and images")
training_option = partial(typer.Option, rich_help_panel="Training")
seeds_option = partial(typer.Option, rich_help_panel="Seed run")
StorePath = Annotated[
    Path, typer.Option("--store", help="Folder of the Zarr store.", callback=local_path)
]
HeldOut = Annotated[float, seeds_option(help="Share of the seed subset to hold out of training.")]
Snapshots = Annotated[int, seeds_option(help="How many networks of the seed run to keep.")]
MatchSteps = Annotated[
    int | None,
    seeds_option(help="Take as many steps, and windows as long, as a full run of so many epochs."),
]
LabelMember = Annotated[
    str | None,
    typer.Option(
        help="Where the label stands: a member's suffix, json:FIELD, / for the folder, .tar for "
        "the tar's name, or a field of a .beton; by default cls, or the store's."
    ),
]
KeepFraction = Annotated[float, keep_option(help="Share of all samples to keep, in (0, 1].")]
ScoreName = Annotated[str | None, keep_option(help="Stored score to keep by.")]
Method = Annotated[str, typer.Option(help="knn, gnn, direct or fused")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Model = Annotated[str, network_option(help="light, resnet18, resnet50 or package.module:factory")]
BatchSize = Annotated[int, network_option(help="Samples per process and step.")]
Rate = Annotated[float, training_option(help="Peak learning rate.")]
Augment = Annotated[
    str,
    network_option(
        help="none, crop, flip (crop and mirror), resized, trivial, rand or package.module:factory",
        callback=usable_augment,
    ),
]
Size = Annotated[
    int | None, network_option(help="Pixels per side; by default the first image's, at most 224.")
]
Channels = Annotated[int | None, network_option(help="3 or 1; by default the first image's.")]
Normalise = Annotated[
    str, network_option(help="Of images: half (mean 0.5, deviation 0.25) or imagenet")
]
Precision = Annotated[str, network_option(help="no, bf16 or fp16")]
Shuffle = Annotated[
    str,
    training_option(
        help="auto, window (of shards) or global; auto is global where shards are sorted by class."
    ),
]
Workers = Annotated[int, typer.Option(help="Loader workers of each process.")]
Seed = Annotated[int, typer.Option(help="Seed of everything that is drawn.")]
EmbeddingName = Annotated[
    str | None, typer.Option(help="Stored embedding to use; by default the only one.")
]
PseudoLabels = Annotated[
    str | None, training_option(help="Stored pseudo-labels to train on instead of the labels.")
]
Unreadable = Annotated[int, typer.Option(help="Most unreadable samples to skip.")]
Rule = Annotated[
    str,
    keep_option(help="top, random, stratified, class_balanced, ccs, beta, moderate, threshold"),
]
Threshold = Annotated[float | None, keep_option(help="threshold: lowest score to keep.")]
ClassFloor = Annotated[
    int, keep_option(help="class_balanced, stratified: fewest samples to keep of a class.")
]
HardCutoff = Annotated[
    float | None, keep_option(help="ccs: share of the samples to drop first as too hard.")
]
Difficulty = Annotated[str | None, keep_option(help="ccs, beta: stored score that says how hard.")]
Bins = Annotated[
    int | None, keep_option(help="ccs, stratified: number of score ranges; by default 50.")
]
RuleEmbedding = Annotated[
    str | None, keep_option(help="moderate: stored embedding; by default the only one.")
]
StoredKeepSet = Annotated[str | None, keep_option(help="Stored keep set to use instead of a rule.")]
DropMissing = Annotated[bool, keep_option(help="Never keep samples without a score.")]
