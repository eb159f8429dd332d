"""Scores of every sample: score, embed, extrapolate, build."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from shardsieve import commands
from shardsieve.cli.base import example, refuse_unused, show
from shardsieve.cli.groups import AttackOptions, NetworkOptions, grouped, options_of
from shardsieve.cli.options import (
    BatchSize,
    EmbeddingName,
    HeldOut,
    Json,
    LabelMember,
    MatchSteps,
    Method,
    Precision,
    Seed,
    Snapshots,
    StorePath,
    Unreadable,
    Workers,
    local_path,
    network_option,
    seeds_option,
)
from shardsieve.train.config import TrainConfig

app = typer.Typer()
_knn = partial(typer.Option, rich_help_panel="Of --method knn")
_gnn = partial(typer.Option, rich_help_panel="Of --method gnn")


@app.command(epilog=example("score --store train.zarr --seeds 0.2 --epochs 30"))
@grouped
def score(
    context: typer.Context,
    store: StorePath,
    network: NetworkOptions,
    attacked: AttackOptions,
    seeds: Annotated[float, seeds_option(help="Seed fraction, in (0, 1].")] = 0.2,
    per_class: Annotated[bool, seeds_option(help="Draw the same share of every class.")] = False,
    paradigm: Annotated[
        str, typer.Option(help="supervised, adversarial (PGD, TRADES) or unsupervised (TURTLE)")
    ] = "supervised",
    epochs: Annotated[
        int | None, seeds_option(help="Epochs of the seed run; by default 20, unsupervised 400.")
    ] = None,
    window: Annotated[
        int | None,
        seeds_option(help="Epochs per window of the scores; by default 10, or the run's."),
    ] = None,
    scores: Annotated[
        list[str] | None,
        typer.Option(help="Scores to make, as 'aum,dyn_unc:variant=official'; by default all."),
    ] = None,
    from_dynamics: Annotated[
        str | None, typer.Option(help="Train nothing: make more scores of this recorded run.")
    ] = None,
    from_embedding: Annotated[
        bool,
        typer.Option(
            help="Train nothing: make prototypicality, moderate, semdedup, d2:score=NAME."
        ),
    ] = False,
    name: Annotated[
        str | None,
        typer.Option(help="Name of the run, which its scores begin with; by default seed."),
    ] = None,
    clean_pass: Annotated[
        bool, seeds_option(help="Record a second, undisturbed pass instead.")
    ] = False,
    held_out: HeldOut = 0.0,
    snapshots: Snapshots = 1,
    match_steps_of: MatchSteps = None,
    ceiling: Annotated[
        bool, seeds_option(help="Train again with another seed and compare both runs.")
    ] = False,
    embedding: Annotated[
        str | None,
        typer.Option(
            help="unsupervised, from-embedding: stored embedding; by default the only one."
        ),
    ] = None,
    classes: Annotated[
        int | None,
        typer.Option(help="unsupervised: number of pseudo-classes; by default as many as labels."),
    ] = None,
    checkpoint_steps: Annotated[
        int, typer.Option(help="Steps between checkpoints; 0: after epochs only")
    ] = 0,
    run_folder: Annotated[
        Path | None,
        typer.Option(help="Folder of the run; by default STORE.runs/NAME.", callback=local_path),
    ] = None,
    as_json: Json = False,
) -> None:
    """Train on a seed subset and store its scores; goes on where it was stopped."""
    specs = _specs(scores) if scores else None
    networks: dict[str, Any] = {"clean_pass": clean_pass, "held_out": held_out}
    networks |= {"snapshots": snapshots, "match_steps_of": match_steps_of, "ceiling": ceiling}
    networks |= {"checkpoint_steps": checkpoint_steps}
    of_networks = [*networks, "run_folder", *options_of(network), *options_of(attacked)]
    of_runs = [*of_networks, "seeds", "per_class", "classes", "paradigm", "epochs"]
    if from_dynamics is not None:
        of_runs += ["from_embedding", "embedding", "name"]
        refuse_unused(context, "without --from-dynamics", *of_runs)
        show(
            commands.scoring.score_from_dynamics(store, from_dynamics, specs, window=window),
            as_json,
        )
        return
    if from_embedding:
        refuse_unused(context, "without --from-embedding", *of_runs, "window")
        show(commands.scoring.score_from_embedding(store, embedding, specs, prefix=name), as_json)
        return
    draw: dict[str, Any] = {"seed_fraction": seeds, "per_class": per_class}
    draw["window"] = 10 if window is None else window
    # Refuses an unknown one, whatever the run is called.
    usual = commands.scoring.default_name(paradigm)
    draw |= {"name": name or usual, "scores": specs}
    adversary = attacked.adversary(paradigm)
    if paradigm == "unsupervised":
        others = [name for name in of_networks if name != "seed"]
        refuse_unused(context, "without --paradigm unsupervised", *others)
        turtle: dict[str, Any] = {"embedding": embedding, "classes": classes}
        turtle |= {"seed": network.seed, "epochs": 400 if epochs is None else epochs}
        show(commands.scoring.score_unsupervised_store(store, **turtle, **draw), as_json)
        return
    refuse_unused(context, "with --paradigm unsupervised", "embedding", "classes")
    if match_steps_of is not None:
        refuse_unused(context, "without --match-steps-of", "epochs")
    draw |= {**networks, "adversary": adversary, "folder": run_folder}
    config = TrainConfig(**asdict(network), epochs=20 if epochs is None else epochs)
    show(commands.training.score_store(store, config, **draw), as_json)


@app.command(epilog=example("embed --store train.zarr"))
def embed(
    context: typer.Context,
    store: StorePath,
    model: Annotated[
        str | None,
        network_option(
            help="Run folder or package.module:factory; by default the seed run NAME, or `seed`."
        ),
    ] = None,
    weights: Annotated[
        Path | None, network_option(help="Checkpoint to load into the model.", callback=local_path)
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the embedding.")] = "seed",
    size: Annotated[
        int | None,
        network_option(help="Pixels per side; by default the run's, else the first image's."),
    ] = None,
    channels: Annotated[
        int | None, network_option(help="3 or 1; by default the run's, else the first image's.")
    ] = None,
    normalise: Annotated[
        str | None, network_option(help="half or imagenet; by default the run's, else half.")
    ] = None,
    batch_size: BatchSize = 256,
    max_unreadable: Unreadable = 0,
    workers: Workers = 0,
    precision: Precision = "no",
    as_json: Json = False,
) -> None:
    """Write the embedding of every sample; goes on where it was stopped."""
    if model is None:
        refuse_unused(context, "with --model", "weights")
    how: dict[str, Any] = {"size": size, "channels": channels, "normalise": normalise}
    show(
        commands.training.embed_store(
            store,
            model=model,
            weights=weights,
            name=name,
            batch_size=batch_size,
            max_unreadable=max_unreadable,
            workers=workers,
            precision=precision,
            **how,
        ),
        as_json,
    )


@app.command(epilog=example("ask --store train.zarr --scores el2n"))
def ask(
    store: StorePath,
    embedding: EmbeddingName = None,
    scores: Annotated[
        list[str],
        typer.Option(help="Scores to make, as 'el2n,variability'; networks stand for epochs."),
    ] = ["el2n"],  # noqa: B006
    name: Annotated[str, typer.Option(help="What the scores' names begin with.")] = "asked",
    as_json: Json = False,
) -> None:
    """Score every sample by what the networks that embedded it say of it."""
    specs = _specs(scores)
    show(commands.asking.ask_networks(store, embedding, specs, prefix=name), as_json)


@app.command(epilog=example("extrapolate --store train.zarr --score seed_dyn_unc --name dyn_unc"))
def extrapolate(
    context: typer.Context,
    store: StorePath,
    name: Annotated[str, typer.Option(help="Name of the score to make.")],
    score: Annotated[str | None, typer.Option(help="Stored score of the seed subset.")] = None,
    embedding: EmbeddingName = None,
    method: Method = "knn",
    k: Annotated[
        str | None,
        typer.Option(
            help="Number of neighbours; by default 50, gnn 20; knn: `auto` cross-validates."
        ),
    ] = None,
    weights: Annotated[str, _knn(help="Weights of neighbours: exp, mean or inverse")] = "exp",
    search: Annotated[str, _knn(help="Search for them: auto, exact, scan, ivf or hnsw")] = "auto",
    min_recall: Annotated[
        float, _knn(help="Recall to reach where the search is not exact.")
    ] = 0.99,
    layer: Annotated[str, _gnn(help="gcn, sage or gat")] = "gcn",
    graph: Annotated[str, _gnn(help="Edges: from seeds only, or among all")] = "all",
    labels: Annotated[
        bool, _gnn("--labels/--no-labels", help="Take labels as features too.")
    ] = False,
    append: Annotated[
        bool, typer.Option(help="Predict only what score NAME lacks, as it was made.")
    ] = (False),
    folds: Annotated[
        int, typer.Option(help="Folds of the seed subset, to measure the quality.")
    ] = 5,
    match_quantiles: Annotated[
        bool | None,
        typer.Option(
            help="Distribute predictions as measured scores are; by default for direct and fused."
        ),
    ] = None,
    keep_fraction: Annotated[
        float, typer.Option(help="Warn if such a keep set is not shown to beat chance.")
    ] = 0.5,
    seed_scores: Annotated[
        str, typer.Option(help="Of the seed subset: measured, or neighbours where it is memorised")
    ] = "measured",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Predict the score of every sample that has none, and say how well that works."""
    if append:
        used = ("store", "name", "append", "as_json")
        others = [str(one.name) for one in context.command.params if one.name not in used]
        refuse_unused(context, "without --append, which goes on as NAME was made", *others)
        show(commands.appending.append_score(store, name), as_json)
        return
    if score is None:
        raise ValueError("--score must name a stored seed score, got none; see `shardsieve info`")
    if method != "gnn":
        refuse_unused(context, "with --method gnn", "layer", "graph", "labels")
    if method != "knn":
        refuse_unused(context, "with --method knn", "weights", "search", "min_recall")
    how: dict[str, Any] = {"method": method, "k": k, "weights": weights, "folds": folds}
    how |= {"search": search, "min_recall": min_recall, "seed": seed}
    how |= {"layer": layer, "graph": graph, "labels": labels}
    how |= {"match": match_quantiles, "keep_fraction": keep_fraction}
    how |= {"seed_scores": seed_scores}
    show(commands.extrapolating.extrapolate_score(store, score, name, embedding, **how), as_json)


@app.command(epilog=example("build 'shards/train-*.tar' --store train.zarr --seeds 0.2"))
@grouped
def build(
    urls: Annotated[
        list[str], typer.Argument(help="Brace patterns, globs, .txt lists, or a .beton.")
    ],
    store: StorePath,
    network: NetworkOptions,
    seeds: Annotated[float, seeds_option(help="Seed fraction, in (0, 1].")] = 0.2,
    per_class: Annotated[bool, seeds_option(help="Draw the same share of every class.")] = False,
    epochs: Annotated[int, seeds_option(help="Epochs of the seed run.")] = 20,
    window: Annotated[int, seeds_option(help="Epochs per window of the scores.")] = 10,
    clean_pass: Annotated[
        bool, seeds_option(help="Record a second, undisturbed pass instead.")
    ] = False,
    label_member: LabelMember = None,
    method: Method = "knn",
    held_out: Annotated[
        float | None, seeds_option(help="As in score; by default 0.1 for direct and fused.")
    ] = None,
    snapshots: Annotated[
        int | None, seeds_option(help="As in score; by default 4 for direct and fused.")
    ] = None,
    match_steps_of: MatchSteps = None,
    k: Annotated[
        int | None, typer.Option(help="Number of neighbours; by default 50, gnn 20.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Index, score, embed and extrapolate in one go; goes on where it was stopped."""
    config = TrainConfig(**asdict(network), epochs=epochs)
    draw: dict[str, Any] = {"seed_fraction": seeds, "per_class": per_class, "window": window}
    draw |= {"clean_pass": clean_pass, "held_out": held_out, "snapshots": snapshots}
    draw |= {"match_steps_of": match_steps_of, "method": method, "k": k}
    result = commands.building.build_store(urls, store, config, **draw, label_member=label_member)
    show(result, as_json)


def _specs(scores: list[str]) -> list[str]:
    """Return the scores of an option that lists them, and may be repeated."""
    listed = ",".join(scores)
    specs = [spec for spec in listed.split(",") if spec]
    if not specs:
        raise ValueError(f"--scores must name a score, got {listed!r}; leave it out for all")
    return specs
