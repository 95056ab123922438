"""The two ends of a tensor-parallel group: what rank 0 makes of the parts, and what every other rank does for it."""

from pathlib import Path
from typing import NamedTuple

from gemline.engine.compute import Forward, Member, Step, Together
from gemline.engine.divided_cache import CacheShare, DividedCache, Take
from gemline.engine.handover import KvStore
from gemline.engine.kv_cache import KvCache
from gemline.engine.loading import Loaded, load_model
from gemline.engine.options import EngineOptions
from gemline.engine.part import Part
from gemline.engine.pools import make_cache
from gemline.engine.ranks import Leader, Ranks
from gemline.engine.shared_sampling import Vocabulary


class Whole(NamedTuple):
    """What an engine has to do with all of a model."""

    cache: KvStore  # every KV head
    together: Together | None = None  # how all parts compute; None: there are no others


def lead(model: Forward, cache: KvCache, part: Part, ranks: Ranks) -> Whole:
    """Rank 0, whose own part of model and cache are given; the others `follow`."""
    leader = Leader(ranks)
    own = Member(model, cache, Vocabulary(part.config.vocab_size, part.tokens, ranks))
    return Whole(DividedCache(cache, part, leader), Together(own, leader))


def follow(model_dir: Path, options: EngineOptions, ranks: Ranks) -> None:
    """Until rank 0 says that it is over. Raises as `load_model` does, and RanksBroken."""
    loaded = load_model(model_dir, options, ranks=ranks)
    follow_with(loaded, ranks)


def follow_with(loaded: Loaded, ranks: Ranks) -> None:
    """The same with a part that is loaded."""
    model, options, config = loaded.model, loaded.options, loaded.model.config
    part = Part(config, ranks.rank, ranks.size)
    cache = make_cache(model, part, options, ranks)
    share = CacheShare(cache, part, ranks)
    member = Member(model, cache, Vocabulary(config.vocab_size, part.tokens, ranks))
    while (ask := ranks.hear()) is not None:
        if isinstance(ask, Step):
            member.compute(ask)
        elif isinstance(ask, Take):
            share.give(ask)
        else:
            share.receive(ask)
