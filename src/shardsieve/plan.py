"""Who reads which places of an epoch's order when: pure functions of counts and world."""

from dataclasses import dataclass
from typing import Any

from shardsieve.order import is_whole

TAILS = ("uneven", "pad", "drop")
PADDING = -1


@dataclass(frozen=True, slots=True)
class World:
    """One rank's place in a run.

    Attributes:
        rank: This process, in `[0, size)`.
        size: Number of processes.
    """

    rank: int = 0
    size: int = 1

    def __post_init__(self) -> None:
        if not (is_whole(self.rank) and is_whole(self.size)):
            raise ValueError(
                f"rank and size must be whole numbers, got {self.rank!r} of {self.size!r}"
            )
        if not 0 <= self.rank < self.size:
            raise ValueError(f"rank must lie in [0, {self.size}), got {self.rank}")


def checked_world(world: Any) -> World | None:
    """Return what may be given as a world; None means that it is to be found.

    Raises:
        TypeError: If it is anything else, such as a number of ranks.
    """
    if world is not None and not isinstance(world, World):
        raise TypeError(f"world must be a World(rank, size), got {world!r}")
    return world


@dataclass(frozen=True, slots=True)
class Steps:
    """How an epoch's order is dealt out: step t takes the next rows, rank by rank.

    Every step is a prefix of the order for all ranks together, so a run may stop after any step
    and go on with another world size or batch size. All ranks have the same number of steps.

    Attributes:
        total: Kept samples from the place where this part of the epoch starts.
        batch_size: Samples per rank and step, at least 1.
        world_size: Ranks.
        tail: `uneven` (each sample once; the last batches are shorter, sizes differ by at most
            one), `pad` (the last rows of the highest ranks repeat samples) or `drop`. Where an
            uneven step has fewer samples than ranks and none before it can lend (batches of one,
            or the end of a resumed epoch), each rank without a sample repeats one.
    """

    total: int
    batch_size: int
    world_size: int
    tail: str = "uneven"

    def __post_init__(self) -> None:
        if self.tail not in TAILS:
            raise ValueError(f"tail must be one of {', '.join(TAILS)}, got {self.tail!r}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")

    @property
    def global_batch(self) -> int:
        """Samples per full step over all ranks."""
        return self.batch_size * self.world_size

    def __len__(self) -> int:
        if self.tail == "drop":
            return self.total // self.global_batch
        return -(-self.total // self.global_batch)

    def bounds(self, step: int) -> tuple[int, int]:
        """Return the places `[start, stop)` that all ranks together take in one step."""
        start, stop = step * self.global_batch, (step + 1) * self.global_batch
        # A last step with fewer samples than ranks borrows from the one before it.
        last, rest = len(self) - 1, self.total % self.global_batch
        lends = self.tail == "uneven" and self.batch_size > 1 and last > 0
        borrowed = max(self.world_size - rest, 0) if rest and lends else 0
        if step == last:
            start -= borrowed
        elif step == last - 1:
            stop -= borrowed
        return start, min(stop, self.total)

    def places_done(self, steps: int) -> int:
        """Return how many places all ranks together have taken after so many steps."""
        return self.bounds(min(steps, len(self)) - 1)[1] if steps and len(self) else 0

    def share(self, step: int, rank: int) -> tuple[int, int]:
        """Return the places `[start, stop)` of one rank in one step, repeats left out."""
        start, stop = self.bounds(step)
        size = stop - start
        if self.tail == "pad":
            begin = min(start + rank * self.batch_size, stop)
            return begin, min(begin + self.batch_size, stop)
        each, more = divmod(size, self.world_size)
        begin = start + rank * each + min(rank, more)
        if size and each == 0 and rank >= more:
            return start, start
        return begin, begin + each + (rank < more)

    def size(self, step: int, rank: int) -> int:
        """Return the samples of one rank in one step, those counted that only fill it up."""
        if self.tail != "uneven":
            return self.batch_size
        start, stop = self.share(step, rank)
        return max(stop - start, 1)

    def weight(self, rank: int, first: int, stop: int) -> float:
        """Return what the mean over a rank's samples of steps `[first, stop)` is multiplied by.

        The mean over ranks is that over the samples of all of them then, where those that only
        fill a step up weigh nothing. It is 1 unless a step is uneven.
        """
        steps = range(first, stop)
        places = sum(end - begin for begin, end in map(self.bounds, steps))
        return self.world_size * sum(self.size(step, rank) for step in steps) / places

    def rank_length(self, rank: int) -> int:
        """Return how many ids one rank hands out: whole batches, and what its last one holds.

        Places without a sample, in a padded tail or a step that lent some, are counted.
        """
        if len(self) == 0:
            return 0
        last = len(self) - 1
        return last * self.batch_size + self.size(last, rank)
