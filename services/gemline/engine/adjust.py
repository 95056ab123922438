"""Logits as requests change them before a token is chosen: bias, then penalties. Knows no sequence."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from gemline.engine.history import History
from gemline.engine.params import SamplingParams


def bias_(logits_RV: torch.Tensor, params: Sequence[SamplingParams]) -> None:
    """Adds each row's logit_bias, in place."""
    entries = [(row, token_id, value) for row, p in enumerate(params) for token_id, value in p.logit_bias.items()]
    if entries:
        rows, token_ids, values = zip(*entries, strict=True)
        logits_RV[torch.tensor(rows), torch.tensor(token_ids)] += logits_RV.new_tensor(values)


def penalize_(logits_RV: torch.Tensor, params: Sequence[SamplingParams], histories: Sequence[History]) -> None:
    """Applies each row's penalties to the tokens of its history, in place.

    Repetition divides a positive logit and multiplies a negative one (Keskar et al., 2019), of prompt and answer; the
    others subtract, of the answer alone: presence once, frequency for each time.
    """
    rows = [row for row, p in enumerate(params) if p.penalized and histories[row].token_ids]
    if not rows:
        return
    num_seen = [len(histories[row].token_ids) for row in rows]
    row_N = torch.from_numpy(np.repeat(np.array(rows), num_seen))
    token_N = torch.from_numpy(np.concatenate([np.frombuffer(histories[row].token_ids, np.int64) for row in rows]))
    count_N = np.concatenate([np.frombuffer(histories[row].answer_counts, np.int64) for row in rows])

    def spread(values: list[float]) -> npt.NDArray[np.float32]:
        """One number for each row, as often as the row has tokens."""
        return np.repeat(np.array(values, dtype=np.float32), num_seen)

    factor_N = torch.from_numpy(spread([params[row].repetition_penalty for row in rows]))
    presence_N = spread([params[row].presence_penalty for row in rows])
    frequency_N = spread([params[row].frequency_penalty for row in rows])
    less_N = torch.from_numpy(presence_N * (count_N > 0) + frequency_N * count_N.astype(np.float32))
    seen_N = logits_RV[row_N, token_N]
    seen_N *= torch.where(seen_N > 0, 1 / factor_N, factor_N)
    logits_RV[row_N, token_N] = seen_N - less_N
