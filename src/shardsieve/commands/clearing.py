"""The `forget` command: what a store should no longer hold."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from shardsieve._errors import MissingScoreError
from shardsieve.store.store import Store, open_store
from shardsieve.train.seedscores import forget_run


class _Kind(NamedTuple):
    word: str
    group: str
    held: Callable[[Store], list[str]]
    forget: Callable[[Store, str], None]


_KINDS = {
    "scores": _Kind("score", "score", lambda s: s.scores, Store.forget_score),
    "embeddings": _Kind("embedding", "embedding", lambda s: s.embeddings, Store.forget_embedding),
    "keep_sets": _Kind("keep set", "keep", lambda s: s.keep_sets, Store.forget_keep_set),
    "pseudo_labels": _Kind(
        "pseudo-labels", "pseudo_label", lambda s: s.pseudo_label_sets, Store.forget_pseudo_labels
    ),
    "runs": _Kind("dynamics of run", "dynamics", lambda s: s.dynamics, forget_run),
}


def forget(path: Path, names: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Delete from a store what is named; nothing, if one of the names is not there.

    Args:
        path: Of the store.
        names: By kind, a key of `scores`, `embeddings`, `keep_sets`, `pseudo_labels`, `runs`. With
            an embedding go its signals, with a run its dynamics, scores and pseudo-labels.

    Returns:
        What is gone, by kind, with a warning where predicted scores that stay were made from it.

    Raises:
        ValueError: If nothing is named.
        MissingScoreError: If a name is not there, listing those that are.
    """
    if not any(names.values()):
        raise ValueError("forget needs the name of a score, embedding, keep set or run to delete")
    store = open_store(path, check_shards=False)
    for kind, wanted in names.items():
        _refuse_missing(store, _KINDS[kind], wanted)
    before = {kind: one.held(store) for kind, one in _KINDS.items()}
    for kind, wanted in names.items():
        for name in wanted:
            _KINDS[kind].forget(store, name)
    gone = {k: sorted({*before[k]} - {*one.held(store)}) for k, one in _KINDS.items()}
    left = _made_from(store, gone)
    said = {"warning": f"scores {', '.join(left)} were predicted from what is gone"} if left else {}
    return {**said, "store": str(path), **{kind: found for kind, found in gone.items() if found}}


def _refuse_missing(store: Store, kind: _Kind, wanted: Sequence[str]) -> None:
    held = kind.held(store)
    for name in wanted:
        # Killed while it deleted, `forget` has left files of what is listed no more.
        if name not in held and not store.has_files(f"{kind.group}/{name}"):
            known = ", ".join(held) or "none"
            raise MissingScoreError(
                f"{kind.word} must be among those in {store.path} ({known}), got {name!r}; "
                "nothing was deleted"
            )


def _made_from(store: Store, gone: Mapping[str, list[str]]) -> list[str]:
    """Return the scores that can no longer be predicted for appended shards."""
    made = {name: store.provenance(name) for name in store.scores}
    return [
        name
        for name, how in made.items()
        if how.get("source") in gone["scores"]
        or (how.get("source") and how.get("embedding") in gone["embeddings"])
    ]
