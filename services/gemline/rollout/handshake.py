"""Whether the workers of a new release can take over from the old ones. Pure: records in, words out."""

from collections.abc import Collection, Sequence

from gemline.cluster.records import ModelCard, Role, State, WorkerRecord


def models_of(records: Sequence[WorkerRecord]) -> tuple[str, ...]:
    """That their decode workers serve, by name."""
    return tuple(sorted({it.model.model_id for it in records if it.role is Role.DECODE}))


def variant(card: ModelCard) -> str:
    """What decides an answer: workers of one variant answer alike."""
    return f"{card.revision}/{card.dtype}/{card.quantization}"


def objections(new: Sequence[WorkerRecord], old: Sequence[WorkerRecord]) -> list[str]:
    """Why the new workers may not get the old ones' requests, each with both values; empty: they may."""
    models = sorted({*models_of(new), *models_of(old)})
    if not models:
        return ["no decode worker of the new release has registered"]
    return [
        f"model {model_id}: {words}"
        for model_id in models
        for words in _of_model(_ready(new, model_id), [it for it in old if it.model.model_id == model_id])
    ]


def can_share_streams(new: Sequence[WorkerRecord], old: Sequence[WorkerRecord]) -> bool:
    """Whether a stream of the old workers can go on at the new ones; if not, old ones finish what they have."""
    return {it.model for it in new if it.role is Role.DECODE} == {it.model for it in old if it.role is Role.DECODE}


def _of_model(new: Sequence[WorkerRecord], old: Sequence[WorkerRecord]) -> list[str]:
    found = [f"no {role.value} worker is ready" for role in _needed(old) if role not in {it.role for it in new}]
    engines = [it for it in new if it.role is not Role.TOKENIZATION]
    if not engines:
        return found
    found += _differing([it.model for it in engines], ("revision", "dtype", "quantization", "tokenizer_sha256"))
    card = engines[0].model
    tokenizers = {it.model.tokenizer_sha256 for it in new if it.role is Role.TOKENIZATION}
    if tokenizers and card.tokenizer_sha256 not in tokenizers:
        found.append(f"tokenizer {card.tokenizer_sha256[:12]} of the engines is not that of a tokenization worker")
    before = next((it.model for it in old if it.role is Role.DECODE), None)
    return found + ([] if before is None else _against(card, before))


def _against(card: ModelCard, before: ModelCard) -> list[str]:
    """What sessions and clients that were there before would trip over."""
    found = [
        f"{name} is {str(ours)[:12]}, was {str(theirs)[:12]}: sessions could not go on"
        for name in ("tokenizer_sha256", "vocab_size")
        if (ours := getattr(card, name)) != (theirs := getattr(before, name))
    ]
    if card.context_length < before.context_length:
        found.append(f"context_length is {card.context_length}, was {before.context_length}: sessions could not go on")
    return found


def _differing(cards: Sequence[ModelCard], names: Collection[str]) -> list[str]:
    """Where workers of one release do not agree."""
    values = {name: sorted({str(getattr(card, name))[:12] for card in cards}) for name in names}
    return [f"workers of the release differ in {name}: {', '.join(them)}" for name, them in values.items() if them[1:]]


def _needed(old: Sequence[WorkerRecord]) -> list[Role]:
    """The roles that the old release had, and those without which nothing is served."""
    had = {it.role for it in old}
    return [role for role in Role if role is not Role.PREFILL or role in had]


def _ready(records: Sequence[WorkerRecord], model_id: str) -> list[WorkerRecord]:
    return [it for it in records if it.state is State.READY and it.model.model_id == model_id]
