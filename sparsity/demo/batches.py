"""Batches to train on, made step by step or ahead of time by worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch.utils.data import DataLoader, Dataset

from sparsity.demo.photos import Pool
from sparsity.demo.scenes import make_batch
from sparsity.demo.schedule import Phase, kind_shares

Batch = tuple[torch.Tensor, torch.Tensor]
"""Frames uint8 ``[B, T, 3, S, S]`` and masks bool ``[B, T, 2, S, S]``."""

Order = tuple[float, Phase]
"""The share of the run that is done and the phase it is in: what a batch is made for."""


class _Made(Dataset[Batch]):
    """Makes batches to order; in a worker from the worker's own random numbers."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool

    def __getitem__(self, order: Order) -> Batch:
        share, phase = order
        frames, masks = make_batch(
            self.pool, kind_shares(share), phase.clips, phase.length, phase.size
        )
        return (frames * 255).round_().byte(), masks


def batches(pool: Pool, orders: Iterable[Order], workers: int) -> Iterator[Batch]:
    """Make a batch for each order.

    Parameters
    ----------
    orders
        Asked for one at a time; with workers, two for each of them ahead of the batch that is due.
    workers
        Processes that make batches; 0: made when they are due, from this process's random numbers.
    """
    made = _Made(pool)
    if workers == 0:
        return map(made.__getitem__, orders)
    return iter(
        DataLoader(
            made,
            batch_size=None,
            sampler=orders,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_one_thread,
        )
    )


def _one_thread(_: int) -> None:
    torch.set_num_threads(1)
