"""Which clips of one sweep are there, while this machine and others render them: at a cost that does not grow with it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .store import ClipStore, StoredClip

# Missing clips that are looked for at each look, besides those that are due next.
_SAMPLE = 4


class Arrivals:
    """The clips of a sweep that have been seen. What was seen is not looked for again, and the folder is never listed.

    Every machine renders its lane in order, so that the first missing clip of each lane is the one to look for. A few of the
    others are looked for in turn: a machine may have joined late, or somebody has rendered single strengths before.

    lanes       the keys of each machine's share, in the order in which it renders them
    version     goes up with every change
    """

    def __init__(self, store: ClipStore, lanes: Iterable[Sequence[str]]):
        self._store = store
        self._lanes = [list(reversed(lane)) for lane in lanes]
        self._waiting = list(dict.fromkeys(key for lane in self._lanes for key in reversed(lane)))
        self._turn = 0
        self._seen: dict[str, StoredClip] = {}
        self.version = 0

    @property
    def seen(self) -> dict[str, StoredClip]:
        """Key -> clip."""
        return dict(self._seen)

    def look_for_all(self) -> None:
        """Look at every clip of the sweep, those seen before included: some may be gone or damaged."""
        keys = dict.fromkeys([*self._seen, *self._waiting])
        found = {key: clip for key in keys if (clip := self._store.get(key))}
        if found.keys() != self._seen.keys():
            self.version += 1
        self._seen = found
        self._waiting = [key for key in keys if key not in found]

    def look(self) -> None:
        """Look for what is due next."""
        for lane in self._lanes:
            while lane and (lane[-1] in self._seen or self._found(lane[-1])):
                lane.pop()
        self._waiting = self._waiting if self._turn % 16 else [key for key in self._waiting if key not in self._seen]
        for _ in range(min(_SAMPLE, len(self._waiting))):
            self._turn += 1
            key = self._waiting[self._turn % len(self._waiting)]
            if key not in self._seen:
                self._found(key)

    def add(self, key: str, clip: StoredClip) -> None:
        """A clip that this machine has kept."""
        self._seen[key] = clip
        self.version += 1

    def forget(self, key: str) -> None:
        """A clip that was deleted: it is missing again."""
        if self._seen.pop(key, None):
            self._waiting.append(key)
            self.version += 1

    def _found(self, key: str) -> bool:
        clip = self._store.get(key)
        if clip:
            self._seen[key] = clip
            self.version += 1
        return clip is not None
