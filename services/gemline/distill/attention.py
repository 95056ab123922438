"""Gemma 2's attention for training: soft-capped, causal, with or without a window. Knows no weights."""

import torch

_QUERY_BLOCK = 256  # queries computed at once: scores are then never wider than what they can see
_UNSEEN = -1e30


def rope_tables(num_positions: int, head_dim: int, theta: float, device: torch.device) -> torch.Tensor:
    """cos and sin of every position's angles, [2, T, K / 2], float32; the second half of a head is the first's pair."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32, device=device) / head_dim)
    angles = torch.arange(num_positions, dtype=torch.float32, device=device)[:, None] * frequencies
    return torch.stack((angles.cos(), angles.sin()))


def rotate(heads_BHTK: torch.Tensor, tables: torch.Tensor) -> torch.Tensor:
    """Rotary position embedding of the first T positions."""
    cos_TK, sin_TK = tables[0, : heads_BHTK.shape[2]], tables[1, : heads_BHTK.shape[2]]
    left, right = heads_BHTK.chunk(2, -1)
    return torch.cat((left * cos_TK - right * sin_TK, right * cos_TK + left * sin_TK), -1)


def attend(
    query_BHTK: torch.Tensor,
    key_BGTK: torch.Tensor,
    value_BGTK: torch.Tensor,
    window: int | None,
    scale: float,
    cap: float | None,
) -> torch.Tensor:
    """softmax(cap * tanh(scale * q k / cap)) v over the keys j with i - window < j <= i; [B, H, T, K].

    Blocks of queries, each with the keys that any of them sees: a window saves what it hides.
    """
    num_rows, num_heads, num_tokens, width = query_BHTK.shape
    num_groups = key_BGTK.shape[1]
    grouped = query_BHTK.reshape(num_rows, num_groups, num_heads // num_groups, num_tokens, width)
    blocks = []
    for start in range(0, num_tokens, _QUERY_BLOCK):
        stop = min(start + _QUERY_BLOCK, num_tokens)
        first = 0 if window is None else max(0, start - window + 1)
        keys, values = key_BGTK[:, :, None, first:stop], value_BGTK[:, :, None, first:stop]
        scores = grouped[..., start:stop, :] @ keys.transpose(-1, -2) * scale
        if cap is not None:
            scores = cap * torch.tanh(scores / cap)
        hidden = _hidden(start, stop, first, window, scores.device)
        blocks.append(torch.softmax(scores + hidden.to(scores.dtype), -1) @ values)
    return torch.cat(blocks, 3).reshape(num_rows, num_heads, num_tokens, width)


def _hidden(start: int, stop: int, first: int, window: int | None, device: torch.device) -> torch.Tensor:
    """What is added to the scores of queries [start, stop) and keys [first, stop): 0 where seen."""
    distance = torch.arange(start, stop, device=device)[:, None] - torch.arange(first, stop, device=device)
    unseen = distance < 0 if window is None else (distance < 0) | (distance >= window)
    return unseen * _UNSEEN
