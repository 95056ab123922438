"""How a request's limits stand, as its answer's headers tell. Knows no Redis."""

from gemline.cluster.limits import Level, Reserved


class Standing:
    """Of one request; what was seen last holds."""

    __slots__ = ("is_counted", "requests", "tokens")

    def __init__(self) -> None:
        self.is_counted = False  # among those of its minute, or refused by their number
        self.requests: Level | None = None  # None: not limited, or not asked
        self.tokens: Level | None = None

    def see(self, reserved: Reserved) -> None:
        """What Redis said."""
        self.requests = reserved.requests or self.requests
        self.tokens = reserved.tokens or self.tokens

    def headers(self) -> list[tuple[str, str]]:
        """x-ratelimit-{limit,remaining,reset}-{requests,tokens}, for those that are limited; a reset is in seconds."""
        return [
            (f"x-ratelimit-{name}-{kind}", value)
            for kind, level in (("requests", self.requests), ("tokens", self.tokens))
            if level is not None
            for name, value in (
                ("limit", str(level.limit)),
                ("remaining", str(level.remaining)),
                ("reset", f"{level.reset_ms / 1e3:.3g}s"),
            )
        ]
