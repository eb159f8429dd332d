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

    def take(self) -> "Counts":
        """Return what was counted, and begin at nothing again."""
        taken = Counts(self.kept, self.read, self.requests, self.retries)
        self.kept = self.read = self.requests = self.retries = 0
        return taken
