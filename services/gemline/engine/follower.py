"""A rank other than 0 of a tensor-parallel group: it holds its part of the model and does what rank 0 does."""

from pathlib import Path

from gemline.engine.compute import Together
from gemline.engine.kv_cache import KvCache
from gemline.engine.loading import Loaded, load_model
from gemline.engine.options import EngineOptions
from gemline.engine.part import Part
from gemline.engine.pools import pools_of
from gemline.engine.ranks import Ranks
from gemline.engine.shared_sampling import Vocabulary


def follow(model_dir: Path, options: EngineOptions, ranks: Ranks) -> None:
    """Until rank 0 says that it is over. Raises as `load_model` does, and RanksBroken."""
    loaded = load_model(model_dir, options, ranks=ranks)
    follow_with(loaded, ranks)


def follow_with(loaded: Loaded, ranks: Ranks) -> None:
    """The same with a part that is loaded."""
    model, options, config = loaded.model, loaded.options, loaded.model.config
    part = Part(config, ranks.rank, ranks.size)
    num_blocks = pools_of(part, options, model.dtype, model.device, ranks)
    cache = KvCache(part.own_config, *num_blocks, options.block_size, model.dtype, model.device)
    Together(model, cache, Vocabulary(config.vocab_size, part.tokens, ranks)).follow()
