"""Shards and their store: pack, realign, index, info, check, forget."""

from pathlib import Path
from typing import Annotated, Any

import typer

from shardsieve import commands
from shardsieve.cli.base import example, refuse_unused, show
from shardsieve.cli.options import Json, LabelMember, Seed, StorePath, local_path

app = typer.Typer()


@app.command(epilog=example("pack images/ shards/ --test-fraction 0.1"))
def pack(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            help="Image folder, IDX folder, digits, fashion-mnist, tars or a .beton.",
        ),
    ],
    out: Annotated[
        Path,
        typer.Argument(
            help="Folder to fill, or .beton to make of tars or a .beton.", callback=local_path
        ),
    ],
    to: Annotated[str, typer.Option(help="What to write: tar or beton")] = "tar",
    samples_per_shard: Annotated[int, typer.Option(help="Most samples in a tar.")] = 1000,
    bytes_per_shard: Annotated[
        int | None, typer.Option(help="Most bytes in a tar; by default any number.")
    ] = None,
    page_size: Annotated[int, typer.Option(help="Page size of a .beton: a power of two.")] = 8
    << 20,
    test_fraction: Annotated[
        float, typer.Option(help="Share held out for a test split, where the source has none.")
    ] = 0.0,
    keep: Annotated[
        str | None,
        typer.Option(help="Write only these: a score of --store, highest first, or a file of ids."),
    ] = None,
    keep_fraction: Annotated[float, typer.Option(help="Share to write with --keep SCORE.")] = 1.0,
    store: Annotated[
        Path | None, typer.Option(help="Store of the tars or the .beton.", callback=local_path)
    ] = None,
    label_member: LabelMember = None,
    seed: Seed = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write tar shards or an FFCV file; images are shuffled once, tars and .beton keep order."""
    if commands.packing.kind_of(source) == "images":
        refuse_unused(context, "with tars or a .beton", "store", "label_member")
    else:
        refuse_unused(context, "with images", "test_fraction", "seed", "bytes_per_shard")
    if keep is None:
        refuse_unused(context, "with --keep", "keep_fraction")
    if to == "beton":
        refuse_unused(context, "with --to tar", "samples_per_shard", "bytes_per_shard")
    if to == "tar":
        refuse_unused(context, "with --to beton", "page_size")
    how: dict[str, Any] = {"to": to, "samples_per_shard": samples_per_shard, "seed": seed}
    how |= {"bytes_per_shard": bytes_per_shard, "page_size": page_size, "overwrite": overwrite}
    wanted = commands.packing.Wanted(store, keep, keep_fraction, label_member)
    result = commands.packing.pack_source(
        source, out, **how, test_fraction=test_fraction, wanted=wanted
    )
    show(result, as_json)


@app.command(epilog=example("realign tars.zarr beton.zarr --score dyn_unc"))
def realign(
    source: Annotated[Path, typer.Argument(help="Store that has the scores.", callback=local_path)],
    target: Annotated[
        Path, typer.Argument(help="Store of other shards of the same samples.", callback=local_path)
    ],
    score: Annotated[
        list[str] | None,
        typer.Option(help="Score to carry, with what it was predicted from; by default all."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Carry scores to the store of other shards with the same samples, by key."""
    show(commands.packing.realign_scores(source, target, score or []), as_json)


@app.command("index", epilog=example("index 'shards/train-*.tar' --store train.zarr"))
def index_command(
    urls: Annotated[
        list[str], typer.Argument(help="Brace patterns, globs, .txt lists, or a .beton.")
    ],
    store: StorePath,
    label_member: LabelMember = None,
    append: Annotated[bool, typer.Option(help="Add new shards to the store.")] = False,
    as_json: Json = False,
) -> None:
    """Walk the shards once and make the store."""
    show(commands.making.make_index(urls, store, label_member, append=append), as_json)


@app.command(epilog=example("info --store train.zarr --keep 0.3 --score dyn_unc"))
def info(
    context: typer.Context,
    store: StorePath,
    keep: Annotated[
        float | None, typer.Option(help="Estimate what an epoch at this keep fraction reads.")
    ] = None,
    score: Annotated[
        str | None, typer.Option(help="Score to keep by; by default at random.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a store holds, and what pruning it would read."""
    if keep is None:
        refuse_unused(context, "with --keep", "score")
    found = commands.showing.describe(store)
    if keep is not None:
        found["reads"] = commands.showing.estimated_reads(store, keep, score)
    show(found, as_json)


@app.command(epilog=example("check --store train.zarr"))
def check(
    store: StorePath,
    moved_to: Annotated[
        str | None, typer.Option(help="Folder, or its URL, that the shards are in now.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Compare the shards' keys, places and labels with the index; then accept equal copies."""
    show(commands.making.check_store(store, moved_to), as_json)


@app.command(epilog=example("forget --store train.zarr --score dyn_unc"))
def forget(
    store: StorePath,
    score: Annotated[list[str] | None, typer.Option(help="A stored score.")] = None,
    embedding: Annotated[
        list[str] | None, typer.Option(help="An embedding and its signals.")
    ] = None,
    keep_set: Annotated[list[str] | None, typer.Option(help="A stored keep set.")] = None,
    pseudo_labels: Annotated[list[str] | None, typer.Option(help="Stored pseudo-labels.")] = None,
    run: Annotated[
        list[str] | None,
        typer.Option(help="A seed run: its dynamics, its scores and its pseudo-labels."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Delete what a store should no longer hold; options may be repeated."""
    names = {"scores": score, "embeddings": embedding, "keep_sets": keep_set}
    names |= {"pseudo_labels": pseudo_labels, "runs": run}
    wanted = {kind: found or [] for kind, found in names.items()}
    show(commands.clearing.forget(store, wanted), as_json)
