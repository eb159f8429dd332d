"""The tables of README.md from records of scores' quality and of accuracy, in Markdown.

    python benchmarks/tables.py records/extrapolation_quality_fashion_mnist_12500.json
    python benchmarks/tables.py records/accuracy_by_share_fashion_mnist.json

Means over the trials, with deviations where there are several.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

SCORES = {
    "el2n": "EL2N",
    "confidence": "confidence",
    "dyn_unc": "Dynamic Uncertainty",
    "dyn_unc_scaled": "Dynamic Uncertainty, window as long in steps",
}
HEADS = {
    "epochs": "same epochs",
    "quarter": "a quarter of the steps",
    "half": "half the steps",
    "steps": "same steps",
}
RUNS = tuple((seeds, matched) for seeds in (0.2, 0.1) for matched in HEADS)
MINUS = "\N{MINUS SIGN}"
ESTIMATES = (
    "ceiling: a second full run",
    "measured in a short run on everything",
    "asked after a short run on everything",
    "seeds' own measured score",
    "mean kNN",
    "exp kNN",
    "GNN, edges from seeds",
    "GNN, edges among all",
    "GNN with labels, edges from seeds",
    "GNN with labels, edges among all",
    "direct, last network alone",
    "direct, held-out seeds alone",
    "direct",
    "fused, last network alone",
    "fused, held-out seeds alone",
    "fused",
    "bound: fused, fitted on the full run's scores",
    "random",
)


def main() -> None:
    record = json.loads(Path(sys.argv[1]).read_text())
    lines = accuracy(record) if "trained on" in record["rows"][0] else quality(record["rows"])
    print("\n".join(lines))


def quality(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield a table per score: Pearson, Spearman, and the share of the best half in common."""
    for score, title in SCORES.items():
        mine = [row for row in rows if row["score"] == score]
        runs = [run for run in RUNS if any((r["seeds"], r["matched"]) == run for r in mine)]
        if not mine:
            continue
        yield from ["", f"{title}:", ""]
        heads = [f"{round(100 * seeds)} % seeds, {HEADS[matched]}" for seeds, matched in runs]
        yield from table(["estimate", *heads], [(e, *cells(mine, e, runs)) for e in ESTIMATES])


def cells(rows: list[dict[str, Any]], estimate: str, runs: list[Any]) -> list[str]:
    found = []
    for run in runs:
        of = [r for r in rows if r["row"] == estimate and (r["seeds"], r["matched"]) == run]
        if not of:
            found.append("")
            continue
        three = [(row["pearson"], row["spearman"], row["agreement"]["0.5"]) for row in of]
        found.append(" / ".join(spread(list(values), 2) for values in zip(*three, strict=True)))
    return found


def accuracy(record: dict[str, Any]) -> Iterator[str]:
    """Yield the table of accuracies in %; in brackets shares of samples seen and saved."""
    rows = {row["trained on"]: row for row in record["rows"]}
    removed = sorted({name.rsplit(", ", 1)[1] for name in rows if ", " in name})
    methods = list(dict.fromkeys(name.rsplit(", ", 1)[0] for name in rows if ", " in name))
    full = rows["full"]
    yield f"Full data: {spread(full['accuracies'], 1)} % ({full['runs']} runs)."
    yield ""
    body = [(m, *(trained(rows.get(f"{m}, {share}")) for share in removed)) for m in methods]
    yield from table(["kept by", *removed], body)


def trained(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    saved = f"{row['samples saved, scoring counted']:.2f}".replace("-", MINUS)
    return f"{spread(row['accuracies'], 1)} ({row['share of samples seen']:.2f}; {saved})"


def spread(values: list[float], digits: int) -> str:
    if not values:
        return ""
    deviation = f" ± {stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{mean(values):.{digits}f}{deviation}".replace("-", MINUS)


def table(heads: list[str], body: list[tuple[str, ...]]) -> Iterator[str]:
    """Yield the lines of a table, without rows that are empty."""
    yield "| " + " | ".join(heads) + " |"
    yield "|" + " --- |" * len(heads)
    yield from ("| " + " | ".join(row) + " |" for row in body if any(row[1:]))


if __name__ == "__main__":
    main()
