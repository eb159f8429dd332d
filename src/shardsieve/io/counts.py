"""What reading took: bytes wanted, bytes read, requests and retries."""

from dataclasses import astuple, dataclass


@dataclass(slots=True)
class Counts:
    """An account of reads.

    Attributes:
        kept: Bytes of the samples that were asked for, headers and padding included.
        read: Bytes that were asked of the storage.
        requests: Reads.
        retries: Requests that had to be made again.
    """

    kept: int = 0
    read: int = 0
    requests: int = 0
    retries: int = 0

    @property
    def amplification(self) -> float:
        """Bytes read over bytes kept; 1 when nothing was read."""
        return self.read / self.kept if self.kept else 1.0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __str__(self) -> str:
        """Return one line of it.

        >>> str(Counts(kept=2_000_000, read=3_000_000, requests=5, retries=1))
        '3.0 MB read, 1.50 of what was kept, 1 retries'
        """
        retries = f", {self.retries} retries" if self.retries else ""
        kept = f"{self.amplification:.2f} of what was kept"
        return f"{size_of(self.read)} read, {kept}{retries}"

    def take(self) -> "Counts":
        """Return what was counted, and begin at nothing again."""
        taken = Counts(self.kept, self.read, self.requests, self.retries)
        self.kept = self.read = self.requests = self.retries = 0
        return taken


def size_of(nbytes: int) -> str:
    """Return a number of bytes for people.

    >>> size_of(2_500_000), size_of(12)
    ('2.5 MB', '12.0 B')
    """
    size, unit = next(
        (nbytes / 10**power, name)
        for power, name in ((12, "TB"), (9, "GB"), (6, "MB"), (0, "B"))
        if nbytes >= 10**power or power == 0
    )
    return f"{size:.1f} {unit}"
