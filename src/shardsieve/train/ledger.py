"""The cost ledger of a run: what it took with everything counted, beside the run on everything."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from shardsieve._errors import ShardsieveError
from shardsieve.cost import NO_COST, Cost, account, estimated_full
from shardsieve.store.store import Store
from shardsieve.train.runfolder import RunFolder, differences

MADE_FROM = "made_from"
"""Where a score's provenance keeps those of the stored scores that it was made from, by use."""


class Overhead(NamedTuple):
    """What was spent before a training.

    Attributes:
        phases: `scoring`, `embedding` and `extrapolation`, as far as they were.
        uncounted: Phases whose cost nobody wrote down.
    """

    phases: Mapping[str, Cost]
    uncounted: tuple[str, ...] = ()


NOTHING = Overhead({})


def overhead_of(store: Store, *scores: str | None) -> Overhead:
    """Return what stored scores cost together, as their provenance and embeddings tell.

    What several of them come from, such as one seed run, is counted once.
    """
    named = [store.provenance(one) for one in scores if one is not None]
    known = [made for one in named for made in _with_sources(one)]
    if not known:
        return NOTHING
    predicted = [made for made in known if isinstance(made.get("of"), Mapping)]
    measured = [made["of"] if made in predicted else made for made in known]
    found: dict[str, list[Any]] = {"scoring": [_cost_in(one) for one in measured]}
    # Of what they were predicted from, and of what the seeds' own scores come from, as TURTLE's.
    embedded = (one.get("embedding") for one in (*known, *measured))
    points = {name for name in embedded if isinstance(name, str)}
    if points:
        found["embedding"] = [_embedding_cost(store, name) for name in sorted(points)]
        networks = (_embedding_cost(store, name, "network_cost") for name in sorted(points))
        found["scoring"] += filter(None, networks)
    if predicted:
        found["extrapolation"] = [_cost_in(made) for made in predicted]
    counted = {name: _sum_of_unlike(costs) for name, costs in found.items() if all(costs)}
    return Overhead(counted, tuple(name for name in found if name not in counted))


def _with_sources(made: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return a provenance and those of the stored scores that it was made from, as D2's is."""
    sources = made.get(MADE_FROM)
    found = list(sources.values()) if isinstance(sources, Mapping) else []
    return [made, *(m for one in found if isinstance(one, Mapping) for m in _with_sources(one))]


def _cost_in(made: Mapping[str, Any]) -> Any:
    """Return the cost that a provenance tells of; who puts a score may mean something else."""
    cost, ours = made.get("cost"), NO_COST.to_dict().keys()
    return cost if isinstance(cost, Mapping) and "bytes" in cost and cost.keys() <= ours else None


def _sum_of_unlike(costs: list[Any]) -> Cost:
    unlike = [one for number, one in enumerate(costs) if one not in costs[:number]]
    return sum(map(Cost.from_dict, unlike), NO_COST)


def embedding_overhead(store: Store, name: str) -> Overhead:
    """Return what a stored embedding cost, the seed run behind its network counted."""
    costs = {"embedding": _embedding_cost(store, name)}
    trained = _embedding_cost(store, name, "network_cost")
    costs |= {"scoring": trained} if trained else {}
    counted = {phase: Cost.from_dict(cost) for phase, cost in costs.items() if cost}
    return Overhead(counted, tuple(phase for phase in costs if phase not in counted))


def _embedding_cost(store: Store, name: str, kind: str = "cost") -> Any:
    return store.embedding_array(name).attrs.get(kind) if name in store.embeddings else None


_OF_ITS_OWN = ("keep", "policy", "test", "test_labels_digest")


class FullRun(NamedTuple):
    """A finished run on everything.

    Attributes:
        identity: Which run it is; empty if its folder does not say.
        training: What its training took.
    """

    identity: Mapping[str, Any]
    training: Cost

    def unlike(self, identity: Mapping[str, Any]) -> list[str]:
        """Return the settings that a run does not share with it, but for what it keeps."""
        apart = differences(self.identity, identity) if self.identity else {}
        return [name for name in apart if name not in _OF_ITS_OWN]


def full_run_in(folder: str | Path) -> FullRun:
    """Return the finished run on everything in a folder.

    Raises:
        ShardsieveError: If the folder holds no such run.
    """
    run = RunFolder(folder)
    result = run.result()
    if result is None or "cost" not in result:
        raise ShardsieveError(f"full run {folder} must be finished; it has no result.json")
    if "kept" not in result:
        raise ShardsieveError(
            f"full run {folder} must be a training of `shardsieve train`, got another run"
        )
    if result["kept"] != result["of"] or result.get("policy"):
        # Of a policy's run it is the last epoch that is counted, which may keep everything.
        got = "a policy's run" if result.get("policy") else f"{result['kept']} of {result['of']}"
        raise ShardsieveError(f"full run {folder} must have kept everything, got {got}")
    training = Cost.from_dict(result["cost"]["phases"]["training"])
    return FullRun(run.identity() or {}, training)


def ledger(
    training: Cost,
    overhead: Overhead,
    *,
    seen: int,
    samples: int,
    epochs: int,
    full: Cost | None = None,
) -> dict[str, Any]:
    """Return the ledger of a run, JSON-ready; see `account`.

    Args:
        training: What it took.
        overhead: What its scores took.
        seen: Samples that it trained on, over all epochs.
        samples: In the store.
        epochs: Of the training.
        full: What training on everything took; None estimates it from this run, unless this is it.
    """
    everything = samples * epochs
    measured = full is not None or seen == everything
    if full is None:
        full = estimated_full(training, seen, everything)
    phases = {**overhead.phases, "training": training}
    made = account(phases, full, full_is_measured=measured, keep_fraction=max(seen, 1) / everything)
    return {**made, "uncounted": list(overhead.uncounted)}
