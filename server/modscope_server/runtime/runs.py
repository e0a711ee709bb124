"""Drafts that were dealt out together, and what of them is in one subscriber's queue."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from modscope_server.runtime.drafts import Item

__all__ = ["Block", "Run", "blocks_of"]


class Block:
    """Drafts in order, the same for all subscribers to whom they were dealt out.

    A draft that holds tensors is alone in its block, so that it goes as a whole.

    Args:
        size: bytes of tensors.
    """

    __slots__ = ("bodies", "drafts", "size")

    def __init__(self, drafts: Sequence[Item], size: int = 0) -> None:
        self.drafts = drafts
        self.size = size
        self.bodies: list[bytes] | None = None
        """What all of these subscribers are sent, once the first of them has encoded it."""


def blocks_of(drafts: Iterable[Item]) -> list[Block]:
    """Drafts in as few blocks as can be."""
    blocks: list[Block] = []
    plain: list[Item] = []
    for draft in drafts:
        if isinstance(draft, bytes):
            plain.append(draft)
            continue
        size = 0
        for value in draft.values:
            if value.copy is not None:
                size += value.copy.nbytes
        if not size:
            plain.append(draft)
            continue
        if plain:
            blocks.append(Block(plain))
            plain = []
        blocks.append(Block((draft,), size))
    if plain:
        blocks.append(Block(plain))
    return blocks


class Run(NamedTuple):
    """Some drafts of a block, in one subscriber's numbering."""

    first: int
    """Sequence number of the first."""
    block: Block
    start: int
    stop: int

    @property
    def length(self) -> int:
        """How many there are."""
        return self.stop - self.start

    @property
    def end(self) -> int:
        """The sequence number after the last."""
        return self.first + self.stop - self.start

    def split(self, length: int) -> tuple[Run, Run]:
        """The first so many, and the rest."""
        first, block, start, stop = self
        middle = start + length
        return Run(first, block, start, middle), Run(first + length, block, middle, stop)

    def numbered(self) -> Iterator[tuple[int, Item]]:
        """Each draft with its sequence number."""
        return enumerate(self.block.drafts[self.start : self.stop], self.first)
