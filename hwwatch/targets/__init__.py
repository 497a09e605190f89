"""From what the user points at to the bytes in memory: `Target`, `target_of`, `locate`."""

from __future__ import annotations

from hwwatch.targets.expression import locate
from hwwatch.targets.model import Leaf, Piece, Target, cover_pieces, merge_ranges, split_pieces
from hwwatch.targets.objects import target_of

__all__ = ["Leaf", "Piece", "Target", "cover_pieces", "locate", "merge_ranges", "split_pieces", "target_of"]
