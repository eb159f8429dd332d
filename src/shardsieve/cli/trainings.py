"""Trainings: train, and run for a whole chain."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from shardsieve import commands
from shardsieve.cli.base import example, refuse_unused, show
from shardsieve.cli.groups import AttackOptions, KeepOptions, NetworkOptions, grouped, options_of
from shardsieve.cli.options import (
    Json,
    keep_option,
    local_path,
    network_option,
    training_option,
)
from shardsieve.commands.steps import STEPS
from shardsieve.commands.texts import constants, pairs
from shardsieve.policy.named import POLICIES, checked_policy, takes
from shardsieve.train.config import TrainConfig

app = typer.Typer()


@app.command(epilog=example("train --store train.zarr --score dyn_unc --out runs/half"))
@grouped
def train(
    context: typer.Context,
    *,
    out: Annotated[Path, typer.Option(help="Folder of the run.", callback=local_path)],
    store: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the Zarr store; by default beside FILE.beton.", callback=local_path
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Tars or a .beton, indexed into --store unless that is done.")
    ] = None,
    test: Annotated[
        Path | None, typer.Option(help="Store, or a .beton, to evaluate on.", callback=local_path)
    ] = None,
    keep: KeepOptions,
    network: NetworkOptions,
    attacked: AttackOptions,
    paradigm: Annotated[
        str, typer.Option(help="supervised, adversarial, or unsupervised: on pseudo-labels")
    ] = "supervised",
    policy: Annotated[
        str | None, keep_option(help=f"{', '.join(POLICIES)}; by default none: static")
    ] = None,
    policy_arg: Annotated[
        list[str] | None, keep_option(help="Constant of the policy: NAME=VALUE")
    ] = None,
    policy_score: Annotated[
        str | None, keep_option(help="Store what the policy learned as a score of this name.")
    ] = None,
    full_run: Annotated[
        Path | None,
        typer.Option(help="Folder of a run on everything, to compare with.", callback=local_path),
    ] = None,
    epochs: Annotated[int, training_option(help="Passes over what is kept.")] = 20,
    schedule: Annotated[str, training_option(help="onecycle or cosine")] = "onecycle",
    weight_decay: Annotated[
        float, training_option(help="Weight decay of SGD, on every weight.")
    ] = 5e-4,
    label_smoothing: Annotated[
        float, training_option(help="Label smoothing of the loss, in [0, 1).")
    ] = 0.0,
    momentum: Annotated[
        float, training_option(help="Momentum of SGD, with Nesterov's step.")
    ] = 0.9,
    accumulate: Annotated[int, training_option(help="Batches per optimiser step.")] = 1,
    ema: Annotated[float, training_option(help="Decay of averaged weights; 0: none")] = 0.0,
    resolutions: Annotated[
        str, network_option(help="Image sizes from epochs on: EPOCH:PIXELS,...")
    ] = "",
    channels_last: Annotated[bool, network_option(help="Memory layout of images.")] = False,
    compiled: Annotated[bool, network_option("--compile", help="Use torch.compile.")] = False,
    evaluate_every: Annotated[
        int, typer.Option(help="Epochs between evaluations; 0: at the end only")
    ] = 0,
    checkpoint_steps: Annotated[
        int, typer.Option(help="Steps between checkpoints; 0: after epochs only")
    ] = 0,
    track: Annotated[
        list[str], typer.Option(help="Trackers: tensorboard,wandb, or repeated; '' tracks nothing")
    ] = ["tensorboard"],  # noqa: B006
    as_json: Json = False,
) -> None:
    """Train on what a rule or policy keeps; goes on where it was stopped."""
    usual = commands.scoring.default_name(paradigm)  # refuses an unknown one
    if paradigm == "unsupervised" and network.pseudo_labels is None:
        network = replace(network, pseudo_labels=usual)
    how: dict[str, Any] = {**asdict(network), "epochs": epochs, "schedule": schedule}
    how |= {"weight_decay": weight_decay, "label_smoothing": label_smoothing}
    how |= {"momentum": momentum, "accumulate": accumulate, "ema": ema}
    how |= {"channels_last": channels_last, "compile": compiled}
    config = TrainConfig(**how, resolutions=pairs("resolutions", resolutions))
    kept = keep.selection(context, network.seed)
    given = constants("policy-arg", policy_arg or [])
    _refuse_unused(context, policy, given)
    if test is None:
        refuse_unused(context, "with --test", "evaluate_every")
    moving = {"name": policy, **given} if policy else None
    result = commands.training.train_store(
        commands.sources.store_of(data, store, precision=network.precision),
        config,
        out=out,
        rule=kept,
        adversary=attacked.adversary(paradigm),
        policy=moving,
        policy_score=policy_score,
        test=commands.sources.store_of(None, test, precision=network.precision) if test else None,
        full_run=full_run,
        evaluate_every=evaluate_every,
        checkpoint_steps=checkpoint_steps,
        track=tuple(name for given in track for name in given.split(",") if name),
    )
    show(result, as_json)


@app.command("run", epilog=example("run configs/imagenet.yaml --until embed"))
def run_command(
    config: Annotated[
        Path, typer.Argument(help="YAML file; see docs/training.md", callback=local_path)
    ],
    until: Annotated[str, typer.Option(help=f"Last step: {', '.join(STEPS)}")] = "report",
    as_json: Json = False,
) -> None:
    """Make the whole chain of a configuration; what is done with the same inputs is skipped."""
    show(commands.running.run_recipe(config, until=until), as_json)


def _refuse_unused(context: typer.Context, policy: str | None, given: dict[str, Any]) -> None:
    """Refuse what would not be looked at: constants of no policy, a rule beside a policy."""
    if policy is None:
        if given:
            raise ValueError(
                f"--policy-arg must come with --policy, got {next(iter(given))!r} alone"
            )
        return
    checked_policy(policy)
    shared = ("keep_fraction", "score")
    rule = [name for name in options_of(KeepOptions) if name not in shared]
    refuse_unused(context, "without --policy, which chooses by itself", *rule)
    for name in shared:
        if name in given:
            refuse_unused(context, f"without --policy-arg {name}", name)
        if not takes(policy, name):
            refuse_unused(context, f"without --policy {policy} (its own: --policy-arg)", name)
