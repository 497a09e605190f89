"""Which of millions of hits are enough for a picture: none that stands out is left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def columns(x: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """For each of n ascending positions the column of pixels it falls into, out of `count`."""
    if not len(x):
        return np.zeros(0, np.int64)
    span = x[-1] - x[0]
    scaled = (x - x[0]) * (count / span) if span > 0 else np.zeros(len(x))
    return np.minimum(scaled.astype(np.int64), count - 1)


def ends(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Rows that are the first or the last of a run of equal `groups`."""
    if not len(groups):
        return np.zeros(0, np.int64)
    turns = np.flatnonzero(groups[1:] != groups[:-1])
    return np.unique(np.concatenate([[0], turns, turns + 1, [len(groups) - 1]]))


def extremes(groups: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each group the first row with its lowest value, and the first with its highest.

    Parameters
    ----------
    groups : array of int, shape (n,)
        In any order, at least 0.
    values : array of float, shape (n,)
        Without nan, except in groups of nothing else, of which one row stays.
    """
    if not len(groups):
        return np.zeros(0, np.int64)
    order = np.argsort(groups, kind="stable")
    sorted_groups, sorted_values = groups[order], values[order]
    starts = np.flatnonzero(np.concatenate([[True], sorted_groups[1:] != sorted_groups[:-1]]))
    sizes = np.diff(np.append(starts, len(order)))
    run = np.repeat(np.arange(len(starts)), sizes)
    found = [order[starts[np.isnan(sorted_values[starts])]]]
    for reduce in (np.fmin, np.fmax):
        best = np.flatnonzero(sorted_values == np.repeat(reduce.reduceat(sorted_values, starts), sizes))
        first = np.concatenate([[True], run[best][1:] != run[best][:-1]]) if len(best) else best
        found.append(order[best[first]])
    return np.unique(np.concatenate(found))


def firsts(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first row of each group, ascending."""
    return np.sort(np.unique(groups, return_index=True)[1])
