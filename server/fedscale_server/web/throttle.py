"""Slowing down whoever guesses passwords: each further miss doubles the wait."""

from __future__ import annotations

from dataclasses import dataclass, field

FREE_MISSES = 5
LONGEST_SECONDS = 60.0
FORGET_SECONDS = 900.0
MOST_KEYS = 10_000


@dataclass(slots=True)
class Throttle:
    """Misses by key, such as an account or an address; times are seconds of any clock that never goes back."""

    _misses: dict[str, tuple[int, float]] = field(default_factory=dict)

    def wait(self, key: str, now: float) -> float:
        """Seconds until the next try may be made; 0 when it may be made now."""
        count, last = self._misses.get(key, (0, now))
        if count < FREE_MISSES or now - last >= FORGET_SECONDS:
            return 0.0
        return max(last + min(2.0 ** (count - FREE_MISSES), LONGEST_SECONDS) - now, 0.0)

    def miss(self, key: str, now: float) -> None:
        """Note a wrong guess."""
        if len(self._misses) >= MOST_KEYS:
            self._forget(now)
        count, last = self._misses.pop(key, (0, now))
        self._misses[key] = (1 if now - last >= FORGET_SECONDS else count + 1, now)

    def hit(self, key: str) -> None:
        """The right guess: earlier misses do not count any more."""
        self._misses.pop(key, None)

    def _forget(self, now: float) -> None:
        """Drop what is too old to matter and, where that is not enough, the oldest half."""
        kept = {key: row for key, row in self._misses.items() if now - row[1] < FORGET_SECONDS}
        self._misses = dict(list(kept.items())[-MOST_KEYS // 2 :])
