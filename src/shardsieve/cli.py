"""The command line: arguments in, one command each, errors as one line."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from shardsieve._errors import ShardsieveError
from shardsieve.commands import (
    appending,
    building,
    exporting,
    extrapolating,
    making,
    packing,
    planning,
    reporting,
    running,
    scoring,
    showing,
    sources,
    training,
)
from shardsieve.commands.texts import constants, pairs
from shardsieve.cost import Plan
from shardsieve.options import (
    Augment,
    BatchSize,
    Bins,
    Channels,
    ClassFloor,
    Difficulty,
    DropMissing,
    HardCutoff,
    HeldOut,
    Json,
    MatchSteps,
    Method,
    Model,
    Precision,
    Rate,
    Rule,
    RuleEmbedding,
    Seed,
    Size,
    Snapshots,
    StorePath,
    Threshold,
    Unreadable,
    Workers,
)
from shardsieve.policy.named import POLICIES
from shardsieve.train.adversary import Adversary
from shardsieve.train.config import TrainConfig
from shardsieve.train.launch import end_processes
from shardsieve.train.stopping import Stopped

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Score a little, extrapolate the rest, and skip samples while streaming.",
)


def _show(result: dict[str, Any], as_json: bool) -> None:
    if os.environ.get("RANK", "0") != "0":  # under a launcher, one process speaks for all
        return
    text = json.dumps(result) if as_json else yaml.safe_dump(result, sort_keys=False).rstrip()
    typer.echo(text)


@app.command()
def pack(
    source: Annotated[
        str,
        typer.Argument(
            help="Image folder, IDX folder, digits, fashion-mnist, tars or a .beton.",
        ),
    ],
    out: Annotated[Path, typer.Argument(help="Folder to fill; from tars the .beton to make.")],
    to: Annotated[str, typer.Option(help="tar or beton")] = "tar",
    samples_per_shard: int = 1000,
    bytes_per_shard: Annotated[int | None, typer.Option()] = None,
    page_size: Annotated[int, typer.Option(help="Of a .beton: a power of two.")] = 8 << 20,
    test_fraction: float = 0.0,
    keep: Annotated[
        str | None,
        typer.Option(help="Write these only: a score of --store, highest first; a file of ids."),
    ] = None,
    keep_fraction: Annotated[float, typer.Option(help="Of --keep SCORE.")] = 1.0,
    store: Annotated[Path | None, typer.Option(help="Of the tars or the .beton.")] = None,
    label_member: str = "cls",
    seed: Seed = 0,
    overwrite: bool = False,
    as_json: Json = False,
) -> None:
    """Write tar shards or an FFCV file: images shuffled once, tars and .beton in their order."""
    how: dict[str, Any] = {"to": to, "samples_per_shard": samples_per_shard, "seed": seed}
    how |= {"bytes_per_shard": bytes_per_shard, "page_size": page_size, "overwrite": overwrite}
    wanted = packing.Wanted(store, keep, keep_fraction, label_member)
    result = packing.pack_source(source, out, **how, test_fraction=test_fraction, wanted=wanted)
    _show(result, as_json)


@app.command()
def realign(
    source: Annotated[Path, typer.Argument(help="Store that has the scores.")],
    target: Annotated[Path, typer.Argument(help="Store of other shards of the same samples.")],
    score: Annotated[list[str] | None, typer.Option(help="Names; all if none.")] = None,
    as_json: Json = False,
) -> None:
    """Carry scores to another layout of the same samples, by key."""
    _show(packing.realign_scores(source, target, score or []), as_json)


@app.command(name="index")
def index_command(
    urls: Annotated[list[str], typer.Argument(help="Brace pattern, glob, or .txt list.")],
    store: StorePath,
    label_member: str = "cls",
    append: Annotated[bool, typer.Option(help="Add new shards to the store.")] = False,
    as_json: Json = False,
) -> None:
    """Walk the shards once and make the store."""
    _show(making.make_index(urls, store, label_member, append=append), as_json)


@app.command()
def info(
    store: StorePath,
    keep: Annotated[
        float | None, typer.Option(help="Estimate what an epoch at this keep fraction reads.")
    ] = None,
    score: Annotated[str | None, typer.Option(help="Keep by it; at random if none.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a store holds, and what pruning it would read."""
    found = showing.describe(store)
    if keep is not None:
        found["reads"] = showing.estimated_reads(store, keep, score)
    _show(found, as_json)


@app.command()
def check(store: StorePath, as_json: Json = False) -> None:
    """Walk the shards again and compare them with the index exactly."""
    _show(making.check_store(store), as_json)


@app.command(name="select")
def select_command(
    store: StorePath,
    keep_fraction: float = 0.5,
    score: Annotated[str | None, typer.Option()] = None,
    rule: Rule = "top",
    seed: Seed = 0,
    threshold: Threshold = None,
    class_floor: ClassFloor = 0,
    hard_cutoff: HardCutoff = None,
    difficulty: Difficulty = None,
    bins: Bins = None,
    embedding: RuleEmbedding = None,
    drop_missing: DropMissing = False,
    out: Annotated[Path | None, typer.Option(help="Write the kept ids, one a line.")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Say how many classes meet in such a batch.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a rule keeps of every class, before anything is trained."""
    kept: dict[str, Any] = {"keep_fraction": keep_fraction, "score": score, "rule": rule}
    kept |= {"threshold": threshold, "class_floor": class_floor, "hard_cutoff": hard_cutoff}
    kept |= {"difficulty": difficulty, "bins": bins, "embedding": embedding, "seed": seed}
    kept |= {"drop_missing": drop_missing}
    _show(showing.kept_per_class(store, kept, out, batch_size), as_json)


@app.command(name="export")
def export_command(
    store: StorePath,
    out: Annotated[Path, typer.Argument(help="The file to write.")],
    layout: Annotated[
        str,
        typer.Option(
            help="ids, keys (SHARD/KEY), energon (its exclude list), ffcv (.npy for indices=), csv"
        ),
    ] = "ids",
    keep_fraction: float = 0.5,
    score: Annotated[str | None, typer.Option()] = None,
    rule: Rule = "top",
    threshold: Threshold = None,
    class_floor: ClassFloor = 0,
    drop_missing: DropMissing = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Write a keep set for other loaders."""
    kept: dict[str, Any] = {"keep_fraction": keep_fraction, "score": score, "rule": rule}
    kept |= {"threshold": threshold, "class_floor": class_floor, "seed": seed}
    kept |= {"drop_missing": drop_missing}
    _show(exporting.export_keep_set(store, out, layout, kept), as_json)


@app.command()
def score(
    store: StorePath,
    seeds: Annotated[float, typer.Option(help="Seed fraction, in (0, 1].")] = 0.2,
    per_class: Annotated[bool, typer.Option(help="The same share of every class.")] = False,
    paradigm: Annotated[
        str, typer.Option(help="supervised, adversarial (PGD, TRADES) or unsupervised (TURTLE)")
    ] = "supervised",
    epochs: Annotated[
        int | None, typer.Option(help="Epochs of the seed run: 20, unsupervised 400.")
    ] = None,
    window: Annotated[int, typer.Option(help="Epochs per window of the scores.")] = 10,
    scores: Annotated[
        str | None,
        typer.Option(help="Which, as in 'aum,dyn_unc:variant=official'; all that can be if none."),
    ] = None,
    from_dynamics: Annotated[
        str | None, typer.Option(help="Train nothing: more scores of this recorded run.")
    ] = None,
    from_embedding: Annotated[
        bool, typer.Option(help="Train nothing: prototypicality, moderate, semdedup, d2:score=NAME")
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Of the run, before its scores' names: seed by default.")
    ] = None,
    clean_pass: Annotated[bool, typer.Option(help="Record a second, clean pass.")] = False,
    held_out: HeldOut = 0.0,
    snapshots: Snapshots = 1,
    match_steps_of: MatchSteps = None,
    ceiling: Annotated[bool, typer.Option(help="Train again and compare both runs.")] = False,
    attack: Annotated[str, typer.Option(help="adversarial: trades or pgd")] = "trades",
    epsilon: Annotated[float, typer.Option(help="adversarial: largest change of a pixel.")] = (
        8 / 255
    ),
    attack_step: Annotated[float, typer.Option(help="adversarial: change per step.")] = 2 / 255,
    attack_steps: Annotated[int, typer.Option(help="adversarial: steps per image.")] = 10,
    beta: Annotated[float, typer.Option(help="adversarial: TRADES' weight.")] = 5.0,
    predictions: Annotated[
        str, typer.Option(help="adversarial: record adversarial or clean ones")
    ] = "adversarial",
    embedding: Annotated[str | None, typer.Option(help="unsupervised, from-embedding.")] = None,
    classes: Annotated[
        int | None, typer.Option(help="unsupervised: pseudo-classes; as many as labels if none.")
    ] = None,
    model: Model = "light",
    batch_size: BatchSize = 64,
    learning_rate: Rate = 0.1,
    augment: Augment = "none",
    size: Size = None,
    channels: Channels = None,
    precision: Precision = "no",
    max_unreadable: Unreadable = 0,
    workers: Workers = 0,
    seed: Seed = 0,
    checkpoint_steps: Annotated[int, typer.Option(help="0: after epochs only")] = 0,
    run_folder: Annotated[Path | None, typer.Option(help="STORE.runs/NAME by default")] = None,
    as_json: Json = False,
) -> None:
    """Train on a seed subset and store its scores; goes on where it was stopped."""
    specs = [spec for spec in scores.split(",") if spec] if scores is not None else None
    if from_dynamics is not None:
        _show(scoring.score_from_dynamics(store, from_dynamics, specs, window=window), as_json)
        return
    if from_embedding:
        _show(scoring.score_from_embedding(store, embedding, specs, prefix=name), as_json)
        return
    draw: dict[str, Any] = {"seed_fraction": seeds, "per_class": per_class, "window": window}
    draw |= {"name": name or scoring.default_name(paradigm), "scores": specs}
    if paradigm == "unsupervised":
        turtle: dict[str, Any] = {"embedding": embedding, "classes": classes, "seed": seed}
        _show(
            scoring.score_unsupervised_store(store, epochs=epochs or 400, **turtle, **draw), as_json
        )
        return
    how: dict[str, Any] = {"model": model, "epochs": epochs or 20, "batch_size": batch_size}
    how |= {"learning_rate": learning_rate, "augment": augment, "size": size, "channels": channels}
    how |= {"precision": precision, "max_unreadable": max_unreadable, "workers": workers}
    attacked: dict[str, Any] = {"epsilon": epsilon, "step": attack_step, "steps": attack_steps}
    attacked |= {"method": attack, "beta": beta, "predictions": predictions}
    draw |= {"adversary": Adversary(**attacked) if paradigm == "adversarial" else None}
    draw |= {"clean_pass": clean_pass, "held_out": held_out, "snapshots": snapshots}
    draw |= {"match_steps_of": match_steps_of, "ceiling": ceiling}
    draw |= {"checkpoint_steps": checkpoint_steps, "folder": run_folder}
    _show(training.score_store(store, TrainConfig(**how, seed=seed), **draw), as_json)


@app.command()
def embed(
    store: StorePath,
    model: Annotated[
        str | None, typer.Option(help="Run folder, package.module:factory; the seed run's if none.")
    ] = None,
    weights: Annotated[Path | None, typer.Option(help="Checkpoint for the factory.")] = None,
    name: Annotated[str, typer.Option(help="Name of the embedding.")] = "seed",
    size: Size = None,
    channels: Channels = None,
    batch_size: BatchSize = 256,
    max_unreadable: Unreadable = 0,
    precision: Precision = "no",
    as_json: Json = False,
) -> None:
    """Write the embedding of every sample; goes on where it was stopped."""
    how: dict[str, Any] = {"size": size, "channels": channels, "batch_size": batch_size}
    _show(
        training.embed_store(
            store,
            model=model,
            weights=weights,
            name=name,
            max_unreadable=max_unreadable,
            precision=precision,
            **how,
        ),
        as_json,
    )


@app.command()
def train(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    store: Annotated[Path | None, typer.Option(help="Folder of the Zarr store.")] = None,
    data: Annotated[
        str | None, typer.Option(help="Tars or a .beton; indexed into --store unless that is done.")
    ] = None,
    keep_fraction: float = 0.5,
    score: Annotated[str | None, typer.Option()] = None,
    rule: Rule = "top",
    threshold: Threshold = None,
    class_floor: ClassFloor = 0,
    hard_cutoff: HardCutoff = None,
    difficulty: Difficulty = None,
    bins: Bins = None,
    embedding: RuleEmbedding = None,
    drop_missing: DropMissing = False,
    policy: Annotated[str | None, typer.Option(help=f"{', '.join(POLICIES)}; none: static")] = None,
    policy_arg: Annotated[list[str] | None, typer.Option(help="NAME=VALUE, of the policy")] = None,
    policy_score: Annotated[str | None, typer.Option(help="Store what it learned.")] = None,
    full_run: Annotated[Path | None, typer.Option(help="Run on everything, to compare.")] = None,
    test: Annotated[Path | None, typer.Option(help="Store, or a .beton, to evaluate on.")] = None,
    model: Model = "light",
    epochs: int = 20,
    batch_size: BatchSize = 64,
    learning_rate: Rate = 0.1,
    schedule: Annotated[str, typer.Option(help="onecycle or cosine")] = "onecycle",
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.0,
    momentum: float = 0.9,
    normalise: Annotated[str, typer.Option(help="half or imagenet")] = "half",
    accumulate: Annotated[int, typer.Option(help="Batches per optimiser step.")] = 1,
    ema: Annotated[float, typer.Option(help="Decay of averaged weights; 0: none")] = 0.0,
    resolutions: Annotated[str, typer.Option(help="EPOCH:PIXELS,... to train on")] = "",
    channels_last: bool = False,
    compiled: Annotated[bool, typer.Option("--compile", help="torch.compile")] = False,
    augment: Augment = "none",
    size: Size = None,
    channels: Channels = None,
    precision: Precision = "no",
    max_unreadable: Unreadable = 0,
    workers: Workers = 0,
    seed: Seed = 0,
    evaluate_every: Annotated[int, typer.Option(help="0: at the end only")] = 0,
    checkpoint_steps: Annotated[int, typer.Option(help="0: after epochs only")] = 0,
    track: Annotated[str, typer.Option(help="tensorboard,wandb or nothing")] = "tensorboard",
    as_json: Json = False,
) -> None:
    """Train on what a rule keeps; goes on where it was stopped."""
    how: dict[str, Any] = {"model": model, "epochs": epochs, "batch_size": batch_size}
    how |= {"learning_rate": learning_rate, "augment": augment, "size": size, "channels": channels}
    how |= {"schedule": schedule, "weight_decay": weight_decay, "label_smoothing": label_smoothing}
    how |= {"precision": precision, "max_unreadable": max_unreadable, "workers": workers}
    how |= {"momentum": momentum, "normalise": normalise, "accumulate": accumulate, "ema": ema}
    how |= {"channels_last": channels_last, "compile": compiled}
    config = TrainConfig(**how, resolutions=pairs("resolutions", resolutions), seed=seed)
    kept: dict[str, Any] = {"keep_fraction": keep_fraction, "score": score, "rule": rule}
    kept |= {"threshold": threshold, "class_floor": class_floor, "hard_cutoff": hard_cutoff}
    kept |= {"difficulty": difficulty, "bins": bins, "embedding": embedding, "seed": seed}
    kept |= {"drop_missing": drop_missing}
    moving = {"name": policy, **constants("policy-arg", policy_arg or [])} if policy else None
    result = training.train_store(
        sources.store_of(data, store, precision=precision),
        config,
        out=out,
        rule=kept,
        policy=moving,
        policy_score=policy_score,
        test=sources.store_of(None, test, precision=precision) if test else None,
        full_run=full_run,
        evaluate_every=evaluate_every,
        checkpoint_steps=checkpoint_steps,
        track=tuple(name for name in track.split(",") if name),
    )
    _show(result, as_json)


@app.command()
def plan(
    seeds: Annotated[float, typer.Option(help="Seed fraction; 0 scores nothing.")] = 0.2,
    keep: Annotated[float, typer.Option(help="Keep fraction, in (0, 1].")] = 0.5,
    epochs: Annotated[int, typer.Option(help="Epochs of the final training.")] = 90,
    score_epochs: Annotated[
        int | None, typer.Option(help="Of the seed run; as many if none")
    ] = None,
    extrapolation: Annotated[float, typer.Option(help="Neighbour search, in epochs.")] = 0.0,
    runs: Annotated[int, typer.Option(help="Trainings that share the scores.")] = 1,
    store: Annotated[Path | None, typer.Option(help="Adds its sample counts.")] = None,
    seconds_per_epoch: Annotated[float | None, typer.Option(help="Adds hours.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a pruned training would cost and save, before anything is started."""
    planned = Plan(seeds, keep, epochs, score_epochs, extrapolation, runs)
    _show(planning.plan_store(planned, store, seconds_per_epoch), as_json)


@app.command()
def extrapolate(
    store: StorePath,
    name: Annotated[str, typer.Option(help="Name of the score to make.")],
    score: Annotated[str | None, typer.Option(help="Stored seed score.")] = None,
    embedding: Annotated[str | None, typer.Option()] = None,
    method: Method = "knn",
    k: Annotated[str, typer.Option(help="Neighbours, or `auto`: by cross-validation.")] = "50",
    weights: str = "exp",
    search: Annotated[str, typer.Option(help="auto, exact, scan, ivf or hnsw")] = "auto",
    min_recall: Annotated[float, typer.Option(help="Of a search that is not exact.")] = 0.99,
    layer: Annotated[str, typer.Option(help="Of the GNN: gcn, sage or gat")] = "gcn",
    graph: Annotated[str, typer.Option(help="Of the GNN: edges from seeds, or all")] = "all",
    labels: Annotated[
        bool, typer.Option("--labels/--no-labels", help="Of the GNN: labels are features too.")
    ] = False,
    append: Annotated[bool, typer.Option(help="Only what score NAME lacks, as it was made.")] = (
        False
    ),
    folds: int = 5,
    match_quantiles: Annotated[
        bool | None,
        typer.Option(help="Distribute predictions as measured scores are; direct and fused do."),
    ] = None,
    keep_fraction: Annotated[float, typer.Option(help="Warn if no better than chance.")] = 0.5,
    seed_scores: Annotated[
        str, typer.Option(help="measured; or neighbours, where the seed run has memorised seeds")
    ] = "measured",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Predict the score of every sample that has none, and say how well that works."""
    if append:
        _show(appending.append_score(store, name), as_json)
        return
    if score is None:
        raise ValueError("--score must name a stored seed score, got none; see `shardsieve info`")
    how: dict[str, Any] = {"method": method, "k": k, "weights": weights, "folds": folds}
    how |= {"search": search, "min_recall": min_recall, "seed": seed}
    how |= {"layer": layer, "graph": graph, "labels": labels}
    how |= {"match": match_quantiles, "keep_fraction": keep_fraction}
    how |= {"seed_scores": seed_scores}
    _show(extrapolating.extrapolate_score(store, score, name, embedding, **how), as_json)


@app.command()
def build(
    urls: Annotated[list[str], typer.Argument(help="Brace pattern, glob, or .txt list.")],
    store: StorePath,
    seeds: Annotated[float, typer.Option(help="Seed fraction, in (0, 1].")] = 0.2,
    per_class: Annotated[bool, typer.Option(help="The same share of every class.")] = False,
    epochs: Annotated[int, typer.Option(help="Epochs of the seed run.")] = 20,
    window: Annotated[int, typer.Option(help="Epochs per window of the scores.")] = 10,
    clean_pass: Annotated[bool, typer.Option(help="Record a second, clean pass.")] = False,
    label_member: str = "cls",
    method: Method = "knn",
    held_out: Annotated[
        float | None, typer.Option(help="As of score; direct and fused: 0.1.")
    ] = None,
    snapshots: Annotated[int | None, typer.Option(help="As of score; direct, fused: 4.")] = None,
    match_steps_of: MatchSteps = None,
    k: Annotated[int, typer.Option(help="Neighbours.")] = 50,
    model: Model = "light",
    batch_size: BatchSize = 64,
    learning_rate: Rate = 0.1,
    augment: Augment = "none",
    size: Size = None,
    channels: Channels = None,
    precision: Precision = "no",
    max_unreadable: Unreadable = 0,
    workers: Workers = 0,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Index, score, embed and extrapolate in one go; goes on where it was stopped."""
    how: dict[str, Any] = {"model": model, "epochs": epochs, "batch_size": batch_size}
    how |= {"learning_rate": learning_rate, "augment": augment, "size": size, "channels": channels}
    how |= {"precision": precision, "max_unreadable": max_unreadable, "workers": workers}
    config = TrainConfig(**how, seed=seed)
    draw: dict[str, Any] = {"seed_fraction": seeds, "per_class": per_class, "window": window}
    draw |= {"clean_pass": clean_pass, "held_out": held_out, "snapshots": snapshots}
    draw |= {"match_steps_of": match_steps_of, "method": method, "k": k}
    result = building.build_store(urls, store, config, **draw, label_member=label_member)
    _show(result, as_json)


@app.command(name="run")
def run_command(
    config: Annotated[Path, typer.Argument(help="YAML file; see docs/training.md")],
    until: Annotated[str, typer.Option(help=f"Last step: {', '.join(running.STEPS)}")] = "report",
    as_json: Json = False,
) -> None:
    """Make the whole chain of a configuration; what is done with the same inputs is skipped."""
    _show(running.run_recipe(config, until=until), as_json)


@app.command()
def report(
    store: StorePath,
    score: Annotated[str, typer.Option(help="Stored score of every sample.")],
    out: Annotated[Path, typer.Option(help="The HTML page.")] = Path("report.html"),
    keep_fraction: float = 0.5,
    reference: Annotated[str | None, typer.Option(help="Measured score to compare.")] = None,
    as_json: Json = False,
) -> None:
    """Write one HTML page: histogram, kept share per class, lowest and highest images."""
    how: dict[str, Any] = {"score": score, "keep_fraction": keep_fraction, "reference": reference}
    _show(reporting.report_score(store, out, **how), as_json)


def run(call: Callable[[], Any]) -> int:
    """Return the exit status of a call: 2 with one line for a user's error, 143 after SIGTERM."""
    try:
        call()
    except SystemExit:  # typer's way to return
        end_processes()
        raise
    except (ShardsieveError, ValueError) as error:
        sys.stderr.write(f"shardsieve: {str(error).strip()}\n")
        return 2
    except Stopped as stopped:
        end_processes()
        sys.stderr.write(f"shardsieve: {stopped}; the same command goes on from there\n")
        return 143
    return 0


def main() -> None:
    """Run the program: exit 0 when done, 2 for a user's error, 143 after SIGTERM.

    A fault keeps its traceback.
    """
    sys.exit(run(app))
