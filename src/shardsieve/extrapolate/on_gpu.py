"""Neighbours on a GPU by way of torch, wherever that has one."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shardsieve.extrapolate.protocol import Floats

# Numbers in a temporary table of float32, 1 GiB; of float64 a quarter, as there are copies of it.
_BUDGET = 2**28
_TABLES = 3 * 2**30


def bytes_of(num_seeds: int, dim: int) -> int:
    """Return the bytes that so many seeds take on a device, with the tables of a search."""
    return 2 * 4 * num_seeds * dim + _TABLES


def free_bytes(device: str) -> int:
    """Return the bytes that are free on a device, with those that torch keeps and does not use."""
    there = torch.device(device)
    kept = torch.cuda.memory_reserved(there) - torch.cuda.memory_allocated(there)
    return int(torch.cuda.mem_get_info(there)[0] + kept)


class SeedsOnGpu:
    """Seeds on a device of torch, where they are proposed in float32 and measured in float64."""

    def __init__(self, seeds: Floats, mean: Floats, device: str) -> None:
        self._device = torch.device(device)
        self._seeds, self._mean = self._there(seeds), self._there(mean)
        self._centred = self._seeds - self._mean
        step = max(1, _BUDGET // seeds.shape[1])  # all at once would take as much again
        parts = [self._centred[at : at + step] for at in range(0, len(seeds), step)]
        self._squares = torch.cat([part.square().sum(dim=1) for part in parts])

    @torch.inference_mode()
    def propose(self, block: Floats, width: int) -> tuple[Floats, NDArray[np.int64]]:
        """Return the squared distances of the nearest by float32, ascending, and their ids.

        Both (n, width). The ids of a row are -1 where its numbers may overflow.
        """
        rows = self._there(block) - self._mean
        lengths = rows.square().sum(dim=1, keepdim=True)
        step = max(1, _BUDGET // len(self._squares))
        with _all_digits(self._device):
            near = [self._nearest(rows[at : at + step], width) for at in range(0, len(rows), step)]
        squared = torch.cat([values for values, _ in near]) + lengths
        ids = torch.cat([indices for _, indices in near])
        # |xy| is at most (|x|² + |y|²) / 2.
        fits = (2 * (lengths + self._squares.max())).isfinite()
        return squared.cpu().numpy(), torch.where(fits, ids, -1).cpu().numpy()

    def _nearest(self, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
        apart = torch.addmm(self._squares, rows, self._centred.T, alpha=-2)
        values, indices = apart.topk(width, dim=1, largest=False)
        return values, indices

    @torch.inference_mode()
    def distances(self, block: Floats, ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the distances (n, c) of each row of a block (n, d) to its candidates (n, c)."""
        found, step = np.empty(ids.shape), max(1, _BUDGET // 4 // (ids.shape[1] * block.shape[1]))
        for start in range(0, len(block), step):
            part = slice(start, start + step)
            rows, near = self._there(block[part]).double(), self._there(ids[part])
            apart = self._seeds[near].double() - rows[:, None]
            found[part] = apart.square().sum(dim=2).sqrt().cpu().numpy()
        return found

    def _there(self, array: NDArray[np.generic]) -> Tensor:
        # Of an array that repeats its rows or is not to be written to, torch takes a copy.
        return torch.from_numpy(np.require(array, requirements=["C", "W"])).to(self._device)


@contextmanager
def _all_digits(device: torch.device) -> Iterator[None]:
    """Multiply in float32 proper, whatever the process has chosen: the search counts on it."""
    matmul = torch.backends.cuda.matmul
    is_new = hasattr(matmul, "fp32_precision")  # from torch 2.9 on
    name, whole = ("fp32_precision", "ieee") if is_new else ("allow_tf32", False)
    before = getattr(matmul, name)
    setattr(matmul, name, whole)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        setattr(matmul, name, before)
