"""From rows of logits to tokens: the inverse of each row's cumulative distribution at one number, drawn on the device.

Weights exp((logit - row's maximum) / temperature) are fixed-point numbers of 2^-40: their sums are exact, so that a
row's token depends neither on the order in which programs add nor on the rows beside it. top_k and top_p look for the
least logit that stays by its bits, eight at a time from the highest: nothing is sorted.

Where the vocabulary is divided among ranks, `logits` are of a rank's own tokens, `vocab_size` of them from
`first_token` on, and so are the chunks that it surveys, counts and totals. `begin` and `draw` read the chunks of all
ranks, in the order of their tokens, and `narrow` sums over all ranks. As all sums are exact, any division gives the
same token.
"""

import triton
import triton.language as tl

ONE = tl.constexpr(1 << 40)
BINS = tl.constexpr(256)
COLDEST = tl.constexpr(1e-30)


@triton.jit
def survey(logits, chunk_max, chunk_token, first_token, vocab_size, CHUNK: tl.constexpr):
    """Program (b, c): the largest logit of a chunk and the first token that has it; infinity where there is NaN."""
    row, chunk, num_chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    logit = tl.load(logits + row.to(tl.int64) * vocab_size + token, mask=token < vocab_size, other=float("-inf"))
    logit = tl.where(logit == logit, logit, float("inf"))
    best = tl.max(logit, 0)
    tl.store(chunk_max + row * num_chunks + chunk, best)
    first = tl.min(tl.where(logit == best, token, vocab_size), 0)
    tl.store(chunk_token + row * num_chunks + chunk, first_token + first)


@triton.jit
def begin(
    chunk_max, chunk_token, row_max, row_token, edge, keep, need, mass, is_active, top_k, top_p, num_chunks,
    CHUNKS: tl.constexpr,
):  # fmt: skip
    """Program b: the row's maximum and its first token, -1 where it is not finite; nothing is cut off yet."""
    row, chunk = tl.program_id(0), tl.arange(0, CHUNKS)
    there = chunk < num_chunks
    maxima = tl.load(chunk_max + row * num_chunks + chunk, mask=there, other=float("-inf"))
    tokens = tl.load(chunk_token + row * num_chunks + chunk, mask=there, other=2147483647)
    best = tl.max(maxima, 0)
    token = tl.min(tl.where(maxima == best, tokens, 2147483647), 0)
    is_finite = (best > float("-inf")) & (best < float("inf"))
    tl.store(row_max + row, tl.where(is_finite, best, 0.0))
    tl.store(row_token + row, tl.where(is_finite, token, -1))
    limit = tl.load(top_k + row)
    tl.store(edge + row, tl.zeros([], tl.int64))
    tl.store(keep + row, tl.zeros([], tl.int64))
    tl.store(mass + row, tl.zeros([], tl.int64))
    tl.store(need + row, limit.to(tl.int64))
    tl.store(is_active + row, (is_finite & ((limit > 0) | (tl.load(top_p + row) < 1.0))).to(tl.int32))


@triton.jit
def weigh(logits, row_max, temperature, min_p, row, token, vocab_size):
    """Fixed-point weights of tokens of a row, 0 below min_p and beyond the vocabulary, and keys in their order.

    Keys are positive and grow with the logit. min_p is a bound on the weight, as the likeliest token's is 1.
    """
    there = token < vocab_size
    logit = tl.load(logits + row.to(tl.int64) * vocab_size + token, mask=there, other=float("-inf")) + 0.0
    coldness = tl.maximum(tl.load(temperature + row), COLDEST)
    weight = tl.exp((logit - tl.load(row_max + row)) / coldness)
    weight = tl.where(there & (weight >= tl.load(min_p + row)), weight, 0.0)
    bits = logit.to(tl.int32, bitcast=True).to(tl.int64) & 0xFFFFFFFF
    key = tl.where(bits < 0x80000000, bits + 0x80000000, 0xFFFFFFFF - bits)
    return (weight * ONE).to(tl.int64), key


@triton.jit
def count(
    logits, row_max, temperature, min_p, edge, is_active, counts, masses, vocab_size,
    SHIFT: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Program (b, c): how many tokens, of what mass, have which next eight bits, of those that begin with the edge's.

    counts and masses [B, 256] int64, bin 0 for the highest bits; zero before.
    """
    row = tl.program_id(0)
    if tl.load(is_active + row) == 0:
        return
    token = tl.program_id(1) * CHUNK + tl.arange(0, CHUNK)
    weight, key = weigh(logits, row_max, temperature, min_p, row, token, vocab_size)
    counted = (weight > 0) & ((key >> (SHIFT + 8)) == (tl.load(edge + row) >> (SHIFT + 8)))
    place = row * BINS + (~(key >> SHIFT) & (BINS - 1))
    tl.atomic_add(counts + place, tl.full([CHUNK], 1, tl.int64), mask=counted)
    tl.atomic_add(masses + place, weight, mask=counted)


@triton.jit
def narrow(
    edge, keep, need, mass, is_active, top_k, counts, masses,
    SHIFT: tl.constexpr, BY_MASS: tl.constexpr,
):  # fmt: skip
    """Program b: the bin in which the wanted number of tokens, or their mass, is reached; its bits become the edge's.

    After the last bits `keep` is how many of the tokens with just the edge's key stay, and `mass` that of all that do.
    What no limit cuts keeps edge 0 and has all the mass. counts and masses are zero again.
    """
    row, bin_ = tl.program_id(0), tl.arange(0, BINS)
    if tl.load(is_active + row) == 0:
        return
    count_ = tl.load(counts + row * BINS + bin_)
    mass_ = tl.load(masses + row * BINS + bin_)
    tl.store(counts + row * BINS + bin_, tl.zeros([BINS], tl.int64))
    tl.store(masses + row * BINS + bin_, tl.zeros([BINS], tl.int64))
    if SHIFT == 24 and not BY_MASS:
        limit = tl.load(top_k + row)
        if (limit == 0) | (tl.sum(count_, 0) <= limit):
            tl.store(mass + row, tl.sum(mass_, 0))
            tl.store(is_active + row, 0)
            return
    measure = mass_ if BY_MASS else count_
    wanted = tl.load(need + row)
    reached = tl.cumsum(measure, 0)
    chosen = tl.sum((reached < wanted).to(tl.int32), 0)
    is_above, is_chosen = bin_ < chosen, bin_ == chosen
    wanted -= tl.sum(tl.where(is_above, measure, 0), 0)
    new_edge = tl.load(edge + row) | ((~chosen & (BINS - 1)).to(tl.int64) << SHIFT)
    mass_above = tl.load(mass + row) + tl.sum(tl.where(is_above, mass_, 0), 0)
    if SHIFT == 0:
        one = tl.sum(tl.where(is_chosen, mass_, 0), 0) // tl.maximum(tl.sum(tl.where(is_chosen, count_, 0), 0), 1)
        if BY_MASS:
            wanted = (wanted + one - 1) // tl.maximum(one, 1)
        tl.store(keep + row, wanted)
        mass_above += wanted * one
    tl.store(need + row, wanted)
    tl.store(edge + row, new_edge)
    tl.store(mass + row, mass_above)


@triton.jit
def turn_to_mass(edge, keep, need, mass, is_active, row_token, top_p):
    """Program b: sets out for the share top_p of the mass that top_k left, whose edge is not beyond the one sought."""
    row = tl.program_id(0)
    share = tl.load(top_p + row)
    wanted = tl.math.ceil(share.to(tl.float64) * tl.load(mass + row).to(tl.float64)).to(tl.int64)
    tl.store(need + row, tl.maximum(wanted, 1))
    active = (share < 1.0) & (tl.load(row_token + row) >= 0)
    tl.store(is_active + row, active.to(tl.int32))
    if active:
        tl.store(edge + row, tl.zeros([], tl.int64))
        tl.store(mass + row, tl.zeros([], tl.int64))


@triton.jit
def total(
    logits, row_max, temperature, min_p, edge, chunk_mass, chunk_equal, chunk_one, vocab_size, CHUNK: tl.constexpr
):  # fmt: skip
    """Program (b, c): a chunk's mass beyond the edge, how many tokens stand at it, and the weight of one of these."""
    row, chunk, num_chunks = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    token = chunk * CHUNK + tl.arange(0, CHUNK)
    weight, key = weigh(logits, row_max, temperature, min_p, row, token, vocab_size)
    border = tl.load(edge + row)
    place = row * num_chunks + chunk
    is_equal = (key == border) & (weight > 0)
    tl.store(chunk_mass + place, tl.sum(tl.where(key > border, weight, 0), 0))
    tl.store(chunk_equal + place, tl.sum(is_equal.to(tl.int64), 0))
    tl.store(chunk_one + place, tl.max(tl.where(is_equal, weight, 0), 0))


@triton.jit
def draw(
    logits, row_max, row_token, temperature, min_p, edge, keep, chunk_mass, chunk_equal, chunk_one, seed, position,
    out, num_chunks, first_chunk, num_own, first_token, vocab_size, CHUNK: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """Program b: the first token up to which more than a share of the mass lies; the likeliest at temperature 0.

    The share, in [0, 1), is Philox4x32-10's of (seed, position), as `gemline.engine.draw` has it. Of ranks the one that
    has the token's chunk finds it, among its `num_own` chunks from `first_chunk` on; the others say 0, to be added.
    """
    row, chunk = tl.program_id(0), tl.arange(0, CHUNKS)
    best = tl.load(row_token + row)
    if (best < 0) | (tl.load(temperature + row) <= 0):
        tl.store(out + row, tl.where(first_chunk == 0, best, 0))
        return
    there = chunk < num_chunks
    masses = tl.load(chunk_mass + row * num_chunks + chunk, mask=there, other=0)
    equals = tl.load(chunk_equal + row * num_chunks + chunk, mask=there, other=0)
    one = tl.max(tl.load(chunk_one + row * num_chunks + chunk, mask=there, other=0), 0)
    allowed = tl.load(keep + row)
    before = tl.cumsum(equals, 0) - equals
    masses += tl.minimum(tl.maximum(allowed - before, 0), equals) * one
    reached = tl.cumsum(masses, 0)
    whole = tl.sum(masses, 0)
    at = tl.load(position + row).to(tl.int64)
    first, second, _, _ = tl.philox(
        tl.load(seed + row), (at & 0xFFFFFFFF).to(tl.uint32), (at >> 32).to(tl.uint32), 0, 0
    )
    number = (first.to(tl.uint64) << 32) | second.to(tl.uint64)
    share = (number >> 11).to(tl.float64) * (1.0 / 9007199254740992.0)
    target = tl.minimum((share * whole.to(tl.float64)).to(tl.int64), whole - 1)
    chosen = tl.sum((reached <= target).to(tl.int32), 0)
    own = chosen - first_chunk
    if (own < 0) | (own >= num_own):
        tl.store(out + row, 0)
        return
    target -= tl.sum(tl.where(chunk < chosen, masses, 0), 0)
    allowed -= tl.sum(tl.where(chunk < chosen, equals, 0), 0)
    token = own * CHUNK + tl.arange(0, CHUNK)
    weight, key = weigh(logits, row_max, temperature, min_p, row, token, vocab_size)
    border = tl.load(edge + row)
    is_equal = (key == border) & (weight > 0)
    stays = (key > border) | (is_equal & (tl.cumsum(is_equal.to(tl.int64), 0) <= allowed))
    sums = tl.cumsum(tl.where(stays, weight, 0), 0)
    tl.store(out + row, first_token + own * CHUNK + tl.sum((sums <= target).to(tl.int32), 0))
