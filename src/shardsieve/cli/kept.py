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
        Path | None,
        typer.Option(help="File to write the kept ids to, one a line.", callback=local_path),
    ] = None,
    save: Annotated[str | None, typer.Option(help="Name to store the keep set under.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Also say how many classes meet in a batch of this size.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show how much of every class a rule keeps; of many classes only --json shows all."""
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
    out: Annotated[Path, typer.Option(help="HTML file to write.", callback=local_path)] = Path(
        "report.html"
    ),
    keep_fraction: KeepFraction = 0.5,
    reference: Annotated[
        str | None, typer.Option(help="Score measured on everything, to compare with.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Write a page about a score: histogram, kept share per class, lowest and highest images."""
    how: dict[str, Any] = {"score": score, "keep_fraction": keep_fraction, "reference": reference}
    show(commands.reporting.report_score(store, out, **how), as_json, out=out)


@app.command(epilog=example("plan --seeds 0.2 --keep 0.5 --epochs 90"))
def plan(
    seeds: Annotated[
        float, typer.Option(help="Seed fraction; 0 scores nothing, 1 measures every score.")
    ] = 0.2,
    keep: Annotated[float, typer.Option(help="Keep fraction, in (0, 1].")] = 0.5,
    epochs: Annotated[int, typer.Option(help="Epochs of the final training.")] = 90,
    score_epochs: Annotated[
        int | None, typer.Option(help="Epochs of the seed run; by default as many.")
    ] = None,
    extrapolation: Annotated[
        float, typer.Option(help="What the neighbour search takes, in epochs.")
    ] = 0.0,
    runs: Annotated[int, typer.Option(help="Trainings that share the scores.")] = 1,
    store: Annotated[
        Path | None, typer.Option(help="Store; adds its sample counts.", callback=local_path)
    ] = None,
    seconds_per_epoch: Annotated[
        float | None, typer.Option(help="Seconds of a full epoch; adds hours.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what a pruned training would cost and save, before anything is started."""
    planned = Plan(seeds, keep, epochs, score_epochs, extrapolation, runs)
    show(commands.planning.plan_store(planned, store, seconds_per_epoch), as_json)
