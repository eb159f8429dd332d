"""What would be kept, and what it would save: select, export, report, plan."""

from pathlib import Path
from typing import Annotated, Any

import typer

from shardsieve import commands
from shardsieve.cli.base import example, show
from shardsieve.cli.groups import KeepOptions, grouped
from shardsieve.cli.options import Json, KeepFraction, Seed, StorePath, local_path
from shardsieve.cost import Plan

app = typer.Typer()


@app.command("select", epilog=example("select --store train.zarr --score dyn_unc"))
@grouped
def select_command(
    context: typer.Context,
    store: StorePath,
    keep: KeepOptions,
    seed: Seed = 0,
    out: Annotated[
        Path | None, typer.Option(help="Write the kept ids, one a line.", callback=local_path)
    ] = None,
    save: Annotated[str | None, typer.Option(help="Store the keep set under this name.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Say how many classes meet in such a batch.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a rule keeps of every class, of many with --json; before anything is trained."""
    rule = keep.selection(context, seed)
    result = commands.showing.kept_per_class(store, rule, out, batch_size, save)
    show(result if as_json else commands.showing.extremes(result), as_json, out=out)


@app.command(
    "export", epilog=example("export --store train.zarr drop.txt --layout energon --score mine")
)
@grouped
def export_command(
    context: typer.Context,
    store: StorePath,
    keep: KeepOptions,
    out: Annotated[Path, typer.Argument(help="The file to write.", callback=local_path)],
    layout: Annotated[
        str | None,
        typer.Option(
            help="ids, keys (SHARD/KEY), energon (its exclude list), ffcv (.npy for indices=), "
            "csv; by default as OUT ends, else ids"
        ),
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write a keep set for other loaders."""
    kept = keep.selection(context, seed)
    result = commands.exporting.export_keep_set(store, out, layout, kept)
    show(result, as_json, out=out)


@app.command(epilog=example("report --store train.zarr --score dyn_unc --out report.html"))
def report(
    store: StorePath,
    score: Annotated[str, typer.Option(help="Stored score of every sample.")],
    out: Annotated[Path, typer.Option(help="The HTML page.", callback=local_path)] = Path(
        "report.html"
    ),
    keep_fraction: KeepFraction = 0.5,
    reference: Annotated[str | None, typer.Option(help="Score measured on everything.")] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page: histogram, kept share per class, lowest and highest images."""
    how: dict[str, Any] = {"score": score, "keep_fraction": keep_fraction, "reference": reference}
    show(commands.reporting.report_score(store, out, **how), as_json, out=out)


@app.command(epilog=example("plan --seeds 0.2 --keep 0.5 --epochs 90"))
def plan(
    seeds: Annotated[float, typer.Option(help="Seed fraction; 0 scores nothing.")] = 0.2,
    keep: Annotated[float, typer.Option(help="Keep fraction, in (0, 1].")] = 0.5,
    epochs: Annotated[int, typer.Option(help="Epochs of the final training.")] = 90,
    score_epochs: Annotated[
        int | None, typer.Option(help="Of the seed run; as many if none")
    ] = None,
    extrapolation: Annotated[float, typer.Option(help="Neighbour search, in epochs.")] = 0.0,
    runs: Annotated[int, typer.Option(help="Trainings that share the scores.")] = 1,
    store: Annotated[
        Path | None, typer.Option(help="Adds its sample counts.", callback=local_path)
    ] = None,
    seconds_per_epoch: Annotated[float | None, typer.Option(help="Adds hours.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a pruned training would cost and save, before anything is started."""
    planned = Plan(seeds, keep, epochs, score_epochs, extrapolation, runs)
    show(commands.planning.plan_store(planned, store, seconds_per_epoch), as_json)
