"""What a session's keys and values take, done by hand."""

import pytest

from gemline.gateway.kv_layout import KvLayout


@pytest.mark.parametrize(("num_tokens", "start", "num_bytes"), [(0, 0, 0), (15, 0, 15 * 12), (16, 1, 16 * 10 + 15 * 2)])
def test_local_layers_keep_what_the_next_token_reads(num_tokens: int, start: int, num_bytes: int) -> None:
    layout = KvLayout(window=16, global_bytes=10, local_bytes=2)
    assert (layout.window_start(num_tokens), layout.num_bytes(num_tokens)) == (start, num_bytes)


def test_what_is_not_known_is_nothing() -> None:
    assert (KvLayout().window_start(100), KvLayout().num_bytes(100)) == (0, 0)
