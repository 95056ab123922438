"""What the worker's prefix cache holds, on its way to gateways: all of it for those that attach, then changes."""

from collections.abc import Iterable

from gemline.engine.events import ResidencyChange
from gemline.internal.v1.decode_pb2 import Residency


class Resident:
    """Names of blocks behind which requests can go on, as of the last step. Event loop only."""

    def __init__(self) -> None:
        self.names: set[bytes] = set()

    def apply(self, change: ResidencyChange) -> None:
        """What a step changed."""
        self.names.difference_update(change.removed)
        self.names.update(change.added)


class Outbox:
    """What one gateway has not been told yet; changes that undo each other are never sent."""

    def __init__(self) -> None:
        self._news: dict[bytes, bool] = {}

    @property
    def has_news(self) -> bool:
        """Whether there is anything to tell."""
        return bool(self._news)

    def add_all(self, names: Iterable[bytes]) -> None:
        """All there is, for one that has been told nothing."""
        self._news.update(dict.fromkeys(names, True))

    def add(self, change: ResidencyChange) -> None:
        """What a step changed."""
        self._news.update(dict.fromkeys(change.removed, False))
        self._news.update(dict.fromkeys(change.added, True))

    def take(self) -> Residency | None:
        """All that is new; None when nothing is."""
        if not self._news:
            return None
        news, self._news = self._news, {}
        return Residency(
            added=b"".join(name for name, is_there in news.items() if is_there),
            removed=b"".join(name for name, is_there in news.items() if not is_there),
        )
