"""What a session's keys and values take on a worker. Pure."""

from typing import NamedTuple

from gemline.cluster.records import ModelCard


class KvLayout(NamedTuple):
    """0 where the model's workers do not say."""

    window: int = 0  # positions that local layers keep
    global_bytes: int = 0  # of a token, in all global layers
    local_bytes: int = 0  # of a token, in all local layers

    def window_start(self, num_tokens: int) -> int:
        """The first position that local layers read for the token after `num_tokens`."""
        return max(0, num_tokens + 1 - self.window) if self.window else 0

    def num_bytes(self, num_tokens: int) -> int:
        """Of a sequence of so many tokens."""
        return self.global_bytes * num_tokens + self.local_bytes * (num_tokens - self.window_start(num_tokens))


def kv_layout(card: ModelCard) -> KvLayout:
    """Of that model."""
    return KvLayout(card.window, card.global_token_bytes, card.local_token_bytes)
