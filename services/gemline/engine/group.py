"""What an engine computes with: a model, or rank 0's part of one that is divided, and what the other ranks do then."""

from pathlib import Path
from typing import NamedTuple, Protocol

import torch

from gemline.engine.compute import Alone, Compute, Forward, Member, Step, Together
from gemline.engine.divided_cache import CacheShare, DividedCache, Take
from gemline.engine.divided_rows import DividedRows, Launch, launch
from gemline.engine.handover import KvStore
from gemline.engine.kv_cache import KvCache
from gemline.engine.loading import Loaded, load_model
from gemline.engine.options import EngineOptions
from gemline.engine.part import Part
from gemline.engine.pools import make_cache
from gemline.engine.ranks import Leader, Ranks
from gemline_kernels.decoding import Decoder, Rows
from gemline_kernels.vocabulary import Vocabulary


class Model(Forward, Protocol):
    """What an engine needs of a model, or of a rank's part of one."""

    @property
    def device(self) -> torch.device:
        """Where its cache has to be."""

    def decoder(self, cache: KvCache, num_rows: int) -> Decoder | None:
        """Rows for decode steps on the device, over that cache; None where a forward pass is as good.

        All ranks of a model ask at a time.
        """


class Whole(NamedTuple):
    """What an engine has to do with all of a model."""

    cache: KvStore  # every KV head
    compute: Compute
    rows: Rows | None  # where decode steps are queued; None: nothing is gained by that


def whole(model: Model, cache: KvCache, part: Part, num_rows: int, ranks: Ranks | None) -> Whole:
    """Of the model and its cache, or of rank 0's part of both: then the other ranks `follow`."""
    decoder = model.decoder(cache, num_rows)
    if ranks is None:
        return Whole(cache, Alone(model, cache, decoder), decoder)
    leader = Leader(ranks)
    own = Member(model, cache, decoder, Vocabulary(part.config.vocab_size, ranks))
    rows = None if decoder is None else DividedRows(decoder, leader)
    return Whole(DividedCache(cache, part, leader), Together(own, leader), rows)


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
    decoder = model.decoder(cache, options.max_running)
    member = Member(model, cache, decoder, Vocabulary(config.vocab_size, ranks))
    with torch.inference_mode():
        while (ask := ranks.hear()) is not None:
            if isinstance(ask, Step):
                member.compute(ask)
            elif isinstance(ask, Launch) and decoder is not None:
                launch(decoder, ask)
            elif isinstance(ask, Take):
                share.give(ask)
            else:
                share.receive(ask)
