"""The `pack` and `realign` commands: images, tars and FFCV files into one another."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from shardsieve._errors import ShardsieveError
from shardsieve.commands.progress import bar
from shardsieve.io.replacing import temporary_folder
from shardsieve.keepset import select
from shardsieve.pack import pack
from shardsieve.pack.beton import keep_rows, pack_beton
from shardsieve.pack.beton_tars import beton_to_tars
from shardsieve.pack.writer import PackedSplit
from shardsieve.scores.inputs import one_of
from shardsieve.shards.beton import SUFFIXES
from shardsieve.store.create import index
from shardsieve.store.realign import realign
from shardsieve.store.store import Store, open_store

LAYOUTS = ("tar", "beton")


@dataclass(frozen=True)
class Wanted:
    """Which samples of tars or a `.beton` to write.

    Attributes:
        store: Of the source; None indexes it in passing where that is needed.
        keep: Name of a stored score, or a file of ids; None writes everything.
        keep_fraction: Of the scored samples.
        label_member: As in `index`.
    """

    store: Path | None = None
    keep: str | None = None
    keep_fraction: float = 1.0
    label_member: str | None = None


def pack_source(
    source: str,
    out: Path,
    *,
    to: str = "tar",
    samples_per_shard: int = 1000,
    bytes_per_shard: int | None = None,
    page_size: int = 8 << 20,
    test_fraction: float = 0.0,
    seed: int = 0,
    overwrite: bool = False,
    wanted: Wanted | None = None,
) -> dict[str, Any]:
    """Write a source in one of the layouts; see `shardsieve pack --help`."""
    one_of("to", to, LAYOUTS)
    held, wanted = kind_of(source), wanted or Wanted()
    beton: dict[str, Any] = {"page_size": page_size, "overwrite": overwrite}
    draw: dict[str, Any] = {"test_fraction": test_fraction, "seed": seed}
    with bar("pack") as progress:
        if held == "images":
            _refuse_keep(wanted, source)
            if to == "beton":
                return _shown(pack_beton(source, out, **draw, **beton, progress=progress))
            sizes: dict[str, Any] = {
                "samples_per_shard": samples_per_shard,
                "bytes_per_shard": bytes_per_shard,
            }
            packed = pack(source, out, **sizes, **draw, overwrite=overwrite, progress=progress)
            return _shown(packed)
        if to == "beton" and out.suffix not in SUFFIXES:
            raise ShardsieveError(f"OUT must be the .beton to make, got {out}; name the file")
        if held == to and (held == "tar" or wanted.keep is None):
            raise ShardsieveError(
                f"{source} is packed as {to} already; choose another --to"
                + (", or the rows with --keep" if held == "beton" else "")
            )
        with TemporaryDirectory(dir=temporary_folder()) as folder:
            indexed = _indexed(source, held, wanted, Path(folder))
            ids = None if wanted.keep is None else _kept_ids(indexed, wanted)
            how: dict[str, Any] = {"overwrite": overwrite, "progress": progress}
            if held == "tar":
                assert indexed is not None
                return _shown(pack_beton(indexed, out, ids=ids, **beton, progress=progress))
            if to == "tar":
                how |= {"samples_per_shard": samples_per_shard, "name": Path(source).stem}
                how["label_field"] = wanted.label_member
                return _shown([beton_to_tars(source, out, rows=ids, **how)])
            assert ids is not None
            return _shown([keep_rows(source, out, ids, **how)])


def realign_scores(source: Path, target: Path, scores: list[str]) -> dict[str, Any]:
    """Carry scores to the store of another layout of the same samples."""
    # The shards that scores come from may be renamed or gone by now: keys tell which is which.
    held = open_store(source, mode="r", check_shards=False)
    carried = realign(held, open_store(target), scores=scores or None)
    return {"from": str(source), "to": str(target), "scores": carried}


def kind_of(source: str) -> str:
    """Return what a source holds: `images`, `tar` or `beton`."""
    if source.endswith(SUFFIXES):
        return "beton"
    is_list = source.startswith("@") or source.endswith(".txt")
    return "tar" if is_list or source.endswith(".tar") else "images"


def _refuse_keep(wanted: Wanted, source: str) -> None:
    if wanted.keep is not None:
        raise ShardsieveError(
            f"--keep takes tars or a .beton, got {source}; pack and score it first"
        )


def _indexed(source: str, held: str, wanted: Wanted, folder: Path) -> Store | None:
    """Return the source's store: the one given, else a passing one where one is needed."""
    if wanted.store is not None:
        open_store(wanted.store, mode="r")
        return index(source, wanted.store, label_member=wanted.label_member)
    if held == "beton" and wanted.keep is None:
        return None
    if wanted.keep is not None and not Path(wanted.keep).is_file():
        raise ShardsieveError(
            f"--keep {wanted.keep} must be the name of a score of --store, or a file of ids that "
            "`shardsieve select --out` wrote; got neither --store nor such a file"
        )
    return index(source, folder / "passing.zarr", label_member=wanted.label_member)


def _kept_ids(store: Store | None, wanted: Wanted) -> NDArray[np.int64]:
    """Return ids from a file, in its order; or those of the highest scores, highest first."""
    assert store is not None
    assert wanted.keep is not None
    keep = wanted.keep
    if keep not in store.scores and Path(keep).is_file():
        if wanted.keep_fraction != 1:
            raise ShardsieveError(
                f"--keep-fraction must come with --keep SCORE, got the file {keep}, whose ids are "
                "all kept; leave it out"
            )
        lines = Path(keep).read_text().split()
        if not all(line.isdigit() for line in lines):
            raise ShardsieveError(f"{keep} must hold one id a line; write it with `select --out`")
        ids = np.array(lines, dtype=np.int64)
        store.rows(ids)
        found, times = np.unique(ids, return_counts=True)
        if len(found) < len(ids):
            raise ShardsieveError(f"{keep} must hold an id once, got {found[times > 1][0]} twice")
        return ids
    scores = store.score(keep)
    ids = select(store, score=keep, keep_fraction=wanted.keep_fraction).ids()
    return ids[np.argsort(-scores[store.rows(ids)], kind="stable")]


def _shown(splits: list[PackedSplit]) -> dict[str, Any]:
    rows = [
        {
            "split": s.split,
            "shards": len(s.shards),
            "samples": s.samples,
            "bytes": s.nbytes,
            "pattern": s.pattern,
        }
        for s in splits
    ]
    return {"splits": rows}
