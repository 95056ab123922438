"""One request's dealings with limits and queue, from its turn to its end."""

from gemline.gateway.allowance import Claim, Ended
from gemline.gateway.fair_queue import Ticket


class Account:
    """What an answer reports to."""

    def __init__(self, claim: Claim, ticket: Ticket) -> None:
        self._claim = claim
        self._ticket = ticket

    @property
    def waited_s(self) -> float:
        """For its turn."""
        return self._ticket.waited_s

    def delivered(self, num_tokens: int) -> None:
        """Tokens have reached the answer."""
        self._ticket.wrote(num_tokens)

    def end(self, ended: Ended) -> None:
        """It is over. May be called again, and does nothing then."""
        self._ticket.end()
        self._claim.settle(ended)
