"""Commands that only look: what a store holds, what a rule would keep."""

from pathlib import Path
from typing import Any

import numpy as np

from shardsieve.commands.choosing import kept_by, rule_behind
from shardsieve.commands.classes import KEPT_OF_EACH, left_out, with_names
from shardsieve.commands.progress import bar
from shardsieve.commands.texts import warned
from shardsieve.epoch import SHUFFLES
from shardsieve.io.clients import over_http
from shardsieve.io.local import readahead_of
from shardsieve.io.replacing import write_whole
from shardsieve.keepset import KeepSet, doubt_of, selected
from shardsieve.loaders.mixing import mixing
from shardsieve.loaders.pages import ReadEstimate, estimate_reads
from shardsieve.loaders.planned import OrderSettings
from shardsieve.scores.inputs import whole_number
from shardsieve.store.store import Store, open_store

# A page of classes, and how many of more are shown at either end.
_MOST_SHOWN, _SHOWN = 30, 10


def describe(path: Path) -> dict[str, Any]:
    """Return what a store holds, JSON-ready."""
    store = open_store(path, mode="r")
    labels = store.labels()
    return {
        "store": str(path),
        "kind": store.kind,
        "shards": store.num_shards,
        "samples": len(store),
        "rows_per_shard": store.rows_per_shard,
        "members": list(store.members),
        "classes": len(np.unique(labels[labels >= 0])),
        "bytes": int(store.ranges[..., 1].sum()),
        "fingerprint": store.fingerprint,
        "embeddings": [_embedding_row(store, name) for name in store.embeddings],
        "dynamics": store.dynamics,
        "pseudo_labels": store.pseudo_label_sets,
        "keep_sets": store.keep_sets,
        "scores": _score_rows(store),
    }


def _embedding_row(store: Store, name: str) -> dict[str, Any]:
    array = store.embedding_array(name)
    row = {"name": name, "dim": array.shape[2]}
    if over_http(store.path):
        return row
    # A pass that was stopped has made the array, but not every chunk of it.
    whole = array.nchunks_initialized + np.count_nonzero(store.samples == 0)
    return {**row, "embedded_shards": int(whole)}


def estimated_reads(path: Path, keep_fraction: float, score: str | None) -> dict[str, Any]:
    """Return the bytes that one cold epoch over a keep set reads, by way of reading."""
    store = open_store(path, mode="r")
    keep = selected(
        store, keep_fraction=keep_fraction, score=score, rule="top" if score else "random"
    )
    kept, total = keep.nbytes(store), int(store.ranges[..., 1].sum())
    reads: dict[str, Any] = {"keep_fraction": keep_fraction, "kept": len(keep)}
    reads |= {"chosen_by": score or "random", "kept_bytes": kept, "all_bytes": total}
    if store.kind != "ffcv":
        return reads | {"ranges": kept, "whole_shards": store.nbytes()}
    ranges = store.ranges.reshape(-1, 2)[: len(store)]
    page_size, nbytes = (int(store.group.attrs[name]) for name in ("page_size", "nbytes"))  # type: ignore[arg-type]
    readahead = readahead_of(store.places[0])
    found = estimate_reads(ranges, keep.ids(), page_size=page_size, readahead=readahead)
    reads |= {
        "os_cache_false": found.pages,
        "os_cache_true": min(max(found.readahead, found.memory), nbytes),
        "os_cache_true_without_readahead": found.memory,
        "rewritten": found.rewritten,
        "pages_touched": found.pages_touched,
        "pages": found.all_pages,
    }
    return reads | {"says": _advice(found, path, keep_fraction, score)}


def _advice(found: ReadEstimate, path: Path, keep_fraction: float, score: str | None) -> str:
    name = score or "NAME"
    share = f"{found.pages_touched:,} of {found.all_pages:,} pages"
    if found.kept == 0:
        return "the samples have no bytes outside the tables: pruning saves steps, not reading"
    if found.saves_little and found.rewritten < found.pages:
        return (
            f"pruning this .beton saves no I/O with os_cache=False: keep {keep_fraction:g} still "
            f"touches {share}; it saves decoding and steps. To save reading, write the rows in "
            f"score order: shardsieve pack FILE.beton NEW.beton --to beton --store {path} "
            f"--keep {name}"
        )
    return f"keep {keep_fraction:g} touches {share}"


def _score_rows(store: Store) -> list[dict[str, Any]]:
    names, rows = store.scores, list[dict[str, Any]]()
    with bar("scores", shown=bool(names)) as progress:
        for name in names:
            rows.append(_score_row(store, name))
            progress(len(rows), len(names))
    return rows


def _score_row(store: Store, name: str) -> dict[str, Any]:
    values = store.score(name)
    scored = int(np.isfinite(values).sum())
    made = store.provenance(name)
    return {"name": name, "scored": scored, "definition": made["definition"], "date": made["date"]}


def kept_per_class(
    path: Path,
    rule: dict[str, Any],
    out: Path | None,
    batch_size: int | None = None,
    save: str | None = None,
) -> dict[str, Any]:
    """Return what a rule keeps of every class, and write the kept ids when asked.

    Args:
        path: Of the store.
        rule: As in `select`, or the name of a stored `keep_set`.
        out: A text file for the kept ids, one a line.
        save: Keep it in the store under this name.
        batch_size: Say how many classes meet in batches of this size, over all ranks.
    """
    if batch_size is not None:
        whole_number("batch_size", batch_size, 1)
    store = open_store(path, mode="r" if save is None else "r+")
    keep, behind = kept_of(store, rule), rule_behind(store, rule)
    if save is not None:
        keep.save(store, save, provenance={k: v for k, v in behind.items() if v is not None})
    if out is not None:
        write_whole(out, "".join(f"{one}\n" for one in keep.ids().tolist()).encode())
    lost = left_out(store, store.labels(), keep.ids(), KEPT_OF_EACH)
    mixed, all_bytes = {}, int(store.ranges[..., 1].sum())
    if batch_size is not None and len(keep):  # nothing makes no batches
        mixed["classes_per_batch"] = _mixing_row(store, keep, batch_size)
    return {
        **warned(doubt_of(store, behind), lost),
        "kept": len(keep),
        "samples": len(store),
        "bytes_kept_fraction": round(keep.nbytes(store) / max(all_bytes, 1), 4),
        **mixed,
        "classes": with_names(_class_rows(store, keep), store),
    }


def kept_of(store: Store, rule: dict[str, Any]) -> KeepSet:
    """Return what a rule keeps; a rule that takes long over many samples shows a bar."""
    with bar("select", shown=rule.get("rule") == "moderate") as progress:
        return kept_by(store, rule, progress=progress)


def _mixing_row(store: Store, keep: KeepSet, batch_size: int) -> dict[str, float]:
    found = {s: mixing(store, keep, OrderSettings(0, s), batch_size) for s in SHUFFLES}
    row = {shuffle: round(one.found, 1) for shuffle, one in found.items()}
    return {**row, "ideal": round(found["global"].ideal, 1)}


def _class_rows(store: Store, keep: KeepSet) -> list[dict[str, Any]]:
    found, place = np.unique(store.labels(), return_inverse=True)
    sizes = np.bincount(place, minlength=len(found))
    kept = np.bincount(place[store.rows(keep.ids())], minlength=len(found))
    rows = []
    for label, left, of in zip(found.tolist(), kept.tolist(), sizes.tolist(), strict=True):
        name = "unlabelled" if label < 0 else label
        rows.append({"class": name, "kept": left, "of": of, "share": round(left / of, 4)})
    return rows


def extremes(result: dict[str, Any]) -> dict[str, Any]:
    """Return the result of `kept_per_class` for people: of many classes least and most kept."""
    rows = sorted(result["classes"], key=lambda row: row["share"])
    if len(rows) <= _MOST_SHOWN:
        return result
    ends = {"least_kept": rows[:_SHOWN], "most_kept": rows[: -_SHOWN - 1 : -1]}
    return {**result, "classes": len(rows), **ends}
