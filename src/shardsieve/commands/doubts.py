"""The warning of who keeps by a score that is not shown to beat chance."""

from shardsieve.extrapolate.quality import doubt
from shardsieve.store.store import Store


def doubt_of(store: Store, score: str | None, keep_fraction: float) -> str | None:
    """Return the warning about a stored score at a keep fraction, None where there is none."""
    if score is None or score not in store.scores:
        return None
    made = store.provenance(score)
    quality = made.get("against_second_run", made.get("quality"))
    return None if quality is None else doubt(quality, keep_fraction)
