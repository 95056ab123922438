"""How a vocabulary is divided among ranks. Arithmetic; knows no torch."""


def tokens_of(rank: int, num_ranks: int, vocab_size: int) -> range:
    """That rank's tokens: shares are in the order of the ranks, and differ by one at most."""
    return range(rank * vocab_size // num_ranks, (rank + 1) * vocab_size // num_ranks)
