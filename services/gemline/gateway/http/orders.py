"""From a checked body to the core's words: one generation request for each prompt and each of n."""

from collections.abc import Sequence
from dataclasses import replace

from starlette.requests import Request

from gemline.cluster.access import Band
from gemline.errors import InvalidRequest
from gemline.gateway.http.answering import Order
from gemline.gateway.http.response_formats import constraint_of
from gemline.gateway.http.schemas import MAX_CHOICES, ChatMessage, GenerationBody
from gemline.gateway.requests import GenerationRequest, Message, Prompt, SamplingOptions, Tenant
from gemline.gateway.tools import Said, SaidCall, ToolUse, told_messages, tools_constraint

# How urgent each service_tier is that says so; the others leave it to the tenant.
_BANDS: dict[str, Band] = {"priority": "priority", "flex": "batch"}
_TIERS: dict[Band, str] = {"priority": "priority", "default": "default", "batch": "flex"}


# OpenAI's own clients send it, in seconds: who would have left before its turn comes is told so at once.
_PATIENCE = "x-stainless-read-timeout"
_MAX_PATIENCE_S = 86_400.0


def tenant_of(request: Request) -> Tenant:
    """Whose key came with the request, as the key check found."""
    tenant: Tenant = request.state.tenant
    return tenant


def messages_of(turns: Sequence[ChatMessage], use: ToolUse | None = None) -> tuple[Message, ...]:
    """The turns in the core's words, the functions that may be called told in them."""
    return told_messages([_said(turn) for turn in turns], use)


def _said(turn: ChatMessage) -> Said:
    calls = tuple(
        SaidCall(call.function.name, call.function.arguments, call.id or "") for call in turn.tool_calls or ()
    )
    return Said("system" if turn.role == "developer" else turn.role, turn.text, calls, turn.tool_call_id or "")


def _patience_s(text: str) -> float | None:
    """How long the client waits for a byte, if it says so in a way that makes sense."""
    try:
        seconds = float(text)
    except ValueError:
        return None
    return seconds if 0 < seconds < _MAX_PATIENCE_S else None


def build_order(
    request: Request,
    body: GenerationBody,
    prompts: Sequence[Prompt],
    *,
    max_tokens: int | None,
    logprobs: int | None,
    use: ToolUse | None = None,
    echo: bool = False,
) -> Order:
    """Raises InvalidRequest for what the fields cannot mean together."""
    n = body.n or 1
    if len(prompts) * n > MAX_CHOICES:
        message = f"{len(prompts)} prompts times n {n} make {len(prompts) * n} answers; at most {MAX_CHOICES} are given"
        raise InvalidRequest(message, param="n" if n > 1 else "prompt")
    if body.stream_options is not None and not body.stream:
        raise InvalidRequest("stream_options is for requests with stream set to true", param="stream_options")
    constraint = constraint_of(body.response_format)
    if use is not None:
        constraint = tools_constraint(use, constraint)
    request_id: str = request.state.request_id
    band = _BANDS.get(body.service_tier or "")
    return Order(
        request_id=request_id,
        model=body.model,
        requests=tuple(
            GenerationRequest(
                request_id=request_id if index == 0 else f"{request_id}-{index}",
                model=body.model,
                prompt=prompts[index // n],
                sampling=replace(
                    _sampling(body, index, max_tokens=max_tokens, logprobs=logprobs), constraint=constraint, echo=echo
                ),
                reads_calls=use is not None,
                band=band,
                cache_key=body.prompt_cache_key or "",
                timeout_s=_patience_s(request.headers.get(_PATIENCE, "")),
                arrived_s=request.state.arrived_s,
            )
            for index in range(len(prompts) * n)
        ),
        service_tier=_TIERS[tenant_of(request).band(band)],
        num_prompts=len(prompts),
        stream=bool(body.stream),
        with_usage=bool(body.stream_options and body.stream_options.include_usage),
        traceparent=request.headers.get("traceparent", ""),
    )


def _sampling(body: GenerationBody, index: int, *, max_tokens: int | None, logprobs: int | None) -> SamplingOptions:
    return SamplingOptions(
        max_tokens=max_tokens,
        temperature=body.temperature,
        top_k=body.top_k,
        top_p=body.top_p,
        min_p=body.min_p,
        seed=_seed(body.seed, index),
        repetition_penalty=body.repetition_penalty,
        presence_penalty=body.presence_penalty,
        frequency_penalty=body.frequency_penalty,
        logit_bias={int(token_id): bias for token_id, bias in (body.logit_bias or {}).items()},
        stop=tuple(body.stop or ()),
        stop_token_ids=tuple(body.stop_token_ids or ()),
        ignore_eos=bool(body.ignore_eos),
        logprobs=logprobs,
    )


def _seed(seed: int | None, index: int) -> int | None:
    """The seed of the answer with that index: one seed for all would give the same answer again and again."""
    if seed is None or not -(2**63) <= seed < 2**64:
        return seed  # the core draws one, or refuses it
    return (seed + index) % 2**64
