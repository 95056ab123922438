"""What a gateway counts, and one request as its metrics and its span see it. Knows no texts."""

import time

from opentelemetry.metrics import Histogram

from gemline.gateway.moves import Reason
from gemline.telemetry import AttributeValue, Span, Telemetry

CANCELED = "canceled"

# An OpenTelemetry histogram takes about 25 us to record a value, as much as all else that the core does for a token. A
# prime, so that the sample does not keep to the same few of the requests that share a step.
ITL_SAMPLE = 17


class GatewayMetrics:
    """The instruments of one gateway."""

    def __init__(self, telemetry: Telemetry) -> None:
        meter = telemetry.meter
        self.requests = meter.create_counter(
            "gemline_gateway_requests",
            description="Requests that ended, by outcome: stop, length, canceled, or an error.",
        )
        self.prompt_tokens = meter.create_counter("gemline_gateway_prompt_tokens", description="Tokens read.")
        self.completion_tokens = meter.create_counter(
            "gemline_gateway_completion_tokens", description="Tokens generated and delivered."
        )
        self.active = meter.create_up_down_counter(
            "gemline_gateway_active_streams", description="Answers that are being generated."
        )
        self.migrations = meter.create_counter(
            "gemline_gateway_migrations",
            description="Requests that went on at another worker, by why they left the one before: it was lost, frozen,"
            " stalled (an engine that stands still) or drained, or it refused.",
        )
        self.predicted_hit_tokens = meter.create_counter(
            "gemline_gateway_predicted_hit_tokens",
            description="Prompt tokens that routing expected in the prefix cache of the worker it chose.",
        )
        self.actual_hit_tokens = meter.create_counter(
            "gemline_gateway_actual_hit_tokens", description="Prompt tokens that were found there."
        )
        self.time_to_worker: Histogram = telemetry.latency(
            "gemline_gateway_time_to_worker",
            "From the request's arrival until a worker has it, but for its wait for a turn: what the gateway adds.",
        )
        self.queue_time: Histogram = telemetry.latency(
            "gemline_gateway_queue_time", "How long a request waited for its turn."
        )
        self.first_token: Histogram = telemetry.latency(
            "gemline_gateway_time_to_first_token", "From the request's arrival to its first tokens."
        )
        self._between_tokens: Histogram = telemetry.latency(
            "gemline_gateway_inter_token_latency",
            f"Between two deliveries of tokens of one answer; one in {ITL_SAMPLE} is recorded.",
        )
        self._num_gaps = 0

    def gap(self, duration_s: float, attributes: dict[str, AttributeValue]) -> None:
        """The time between two deliveries."""
        self._num_gaps += 1
        if self._num_gaps % ITL_SAMPLE == 0:
            self._between_tokens.record(duration_s, attributes)


class Observation:
    """One request from its arrival to its end; `end` counts once."""

    def __init__(self, metrics: GatewayMetrics, span: Span, model_id: str, arrived_s: float) -> None:
        """`arrived_s` is of the monotonic clock."""
        self._metrics = metrics
        self._attributes: dict[str, AttributeValue] = {"model": model_id}
        self._last_at_s = arrived_s
        self._num_tokens = 0
        self._num_moves = 0
        self._active = False
        self._ended = False
        self.span = span

    def begun(self, num_prompt_tokens: int, waited_s: float) -> None:
        """A worker has the request, whose turn came after so long."""
        taken_s = time.monotonic() - self._last_at_s
        self._metrics.queue_time.record(waited_s, self._attributes)
        self._metrics.time_to_worker.record(taken_s - waited_s, self._attributes)
        self._active = True
        self._metrics.active.add(1, self._attributes)
        self._metrics.prompt_tokens.add(num_prompt_tokens, self._attributes)
        self.span.set("gemline.prompt_tokens", num_prompt_tokens)

    def delivered(self, num_tokens: int) -> None:
        """Tokens have come, all at once: measured once."""
        now_s = time.monotonic()
        if self._num_tokens:
            self._metrics.gap(now_s - self._last_at_s, self._attributes)
        else:
            self._metrics.first_token.record(now_s - self._last_at_s, self._attributes)
        self._last_at_s = now_s
        self._num_tokens += num_tokens

    def hit(self, num_predicted: int, num_actual: int) -> None:
        """The first token has come, and with it how much of the prompt was cached."""
        self._metrics.predicted_hit_tokens.add(num_predicted, self._attributes)
        self._metrics.actual_hit_tokens.add(num_actual, self._attributes)
        self.span.set("gemline.predicted_hit_tokens", num_predicted)
        self.span.set("gemline.actual_hit_tokens", num_actual)

    def moved(self, reason: Reason) -> None:
        """Another worker has the request."""
        self._num_moves += 1
        self._metrics.migrations.add(1, self._attributes | {"reason": reason.value})
        self.span.set("gemline.migrations", self._num_moves)
        self.span.set("gemline.migration_reason", reason.value)

    def end(self, outcome: str, error: BaseException | None = None) -> None:
        """It is over; `outcome` is a finish reason, "canceled" or an error's code."""
        if self._ended:
            return
        self._ended = True
        if self._active:
            self._metrics.active.add(-1, self._attributes)
            self._metrics.completion_tokens.add(self._num_tokens, self._attributes)
        self._metrics.requests.add(1, self._attributes | {"outcome": outcome})
        self.span.set("gemline.completion_tokens", self._num_tokens)
        self.span.set("gemline.outcome", outcome)
        self.span.end(error)
