"""The command line: arguments in, one command each, errors as one line."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from shardsieve._errors import ShardsieveError
from shardsieve.commands import making, showing

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Score a little, extrapolate the rest, and skip samples while streaming.",
)

StorePath = Annotated[Path, typer.Option("--store", help="Folder of the Zarr store.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Seed = Annotated[int, typer.Option(help="Seed of every draw.")]


def _show(result: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(result))
        return
    for name, value in result.items():
        typer.echo(f"{name}: {value}" if not isinstance(value, list) else f"{name}:")
        for row in value if isinstance(value, list) else []:
            typer.echo("  " + "  ".join(f"{k} {v}" for k, v in row.items()))


@app.command()
def pack(
    source: Annotated[str, typer.Argument(help="Image folder, IDX folder, digits, fashion-mnist")],
    out: Annotated[Path, typer.Argument(help="Folder for the shards.")],
    samples_per_shard: int = 1000,
    bytes_per_shard: Annotated[int | None, typer.Option()] = None,
    test_fraction: float = 0.0,
    seed: Seed = 0,
    overwrite: bool = False,
    as_json: Json = False,
) -> None:
    """Write WebDataset tar shards, shuffled once."""
    sizes: dict[str, Any] = {
        "samples_per_shard": samples_per_shard,
        "bytes_per_shard": bytes_per_shard,
    }
    result = making.pack_source(
        source, out, test_fraction=test_fraction, seed=seed, overwrite=overwrite, **sizes
    )
    _show(result, as_json)


@app.command(name="index")
def index_command(
    urls: Annotated[list[str], typer.Argument(help="Brace pattern, glob, or .txt list.")],
    store: StorePath,
    label_member: str = "cls",
    as_json: Json = False,
) -> None:
    """Walk the shards once and make the store."""
    _show(making.make_index(urls, store, label_member), as_json)


@app.command()
def info(store: StorePath, as_json: Json = False) -> None:
    """Say what a store holds."""
    _show(showing.describe(store), as_json)


@app.command()
def check(store: StorePath, as_json: Json = False) -> None:
    """Walk the shards again and compare them with the index exactly."""
    _show(making.check_store(store), as_json)


@app.command(name="select")
def select_command(
    store: StorePath,
    keep_fraction: float = 0.5,
    score: Annotated[str | None, typer.Option()] = None,
    rule: str = "top",
    seed: Seed = 0,
    threshold: Annotated[float | None, typer.Option()] = None,
    out: Annotated[Path | None, typer.Option(help="Write the kept ids, one a line.")] = None,
    as_json: Json = False,
) -> None:
    """Show what a rule keeps of every class, before anything is trained."""
    chosen: dict[str, Any] = {
        "keep_fraction": keep_fraction,
        "score": score,
        "rule": rule,
        "seed": seed,
    }
    _show(showing.kept_per_class(store, {**chosen, "threshold": threshold}, out), as_json)


@app.command()
def extrapolate(
    store: StorePath,
    score: Annotated[str, typer.Option(help="Stored seed score.")],
    name: Annotated[str, typer.Option(help="Name of the score to make.")],
    embedding: Annotated[str | None, typer.Option()] = None,
    method: str = "knn",
    k: int = 50,
    weights: str = "exp",
    folds: int = 5,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Predict the score of every sample that has none, and say how well that works."""
    how: dict[str, Any] = {
        "method": method,
        "k": k,
        "weights": weights,
        "folds": folds,
        "seed": seed,
    }
    _show(making.extrapolate_score(store, score, name, embedding, **how), as_json)


def run(call: Callable[[], Any]) -> int:
    """Return the exit status of a call: 2 with one line for a user's error, else its own."""
    try:
        call()
    except (ShardsieveError, ValueError) as error:
        sys.stderr.write(f"shardsieve: {str(error).strip()}\n")
        return 2
    return 0


def main() -> None:
    """Run the program: exit 0 when done, 2 for a user's error; a fault keeps its traceback."""
    sys.exit(run(app))
