"""Requests under which a worker was lost: which of them it died of comes out when each is tried alone."""

from gemline.gateway.inbox import Inbox

LOSSES_IN_ROW = 2  # without a token between: then the request is what the workers died of
LOSSES_IN_ALL = 5  # whatever came between


class Trial:
    """A suspect on its way to its next worker, and there until it has a token or an end."""

    def __init__(self, worker_id: str) -> None:
        self.worker_id = worker_id
        self.is_alone = True  # no other suspect was on trial there at the same time
        self._inbox: Inbox | None = None
        self._is_over = False

    @property
    def is_open(self) -> bool:
        """Whether it may still turn out to be what kills this worker."""
        return not self._is_over and (self._inbox is None or self._inbox.is_open)

    def sent(self, inbox: Inbox) -> None:
        """The worker has been sent the request."""
        self._inbox = inbox

    def abandon(self) -> None:
        """It was not sent."""
        self._is_over = True


class Suspects:
    """All trials of one gateway that are going on."""

    def __init__(self) -> None:
        self._trials: list[Trial] = []

    def workers(self) -> set[str]:
        """Those that have a suspect already."""
        self._trials = [trial for trial in self._trials if trial.is_open]
        return {trial.worker_id for trial in self._trials}

    def begin(self, worker_id: str) -> Trial:
        """A suspect is to be sent there."""
        trial = Trial(worker_id)
        beside = [other for other in self._trials if other.is_open and other.worker_id == worker_id]
        for other in beside:
            other.is_alone = False
        trial.is_alone = not beside
        self._trials.append(trial)
        return trial


class Record:
    """The losses of one request.

    It is convicted by two in a row that nobody else can have caused: the second while it was alone on trial, without a
    token since the first. The first may have hit any number of requests; those that get a token elsewhere are cleared.
    """

    def __init__(self) -> None:
        self._num_in_row = 0
        self._trial: Trial | None = None
        self.num_losses = 0

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what its last worker died of."""
        return self._num_in_row > 0

    @property
    def is_convicted(self) -> bool:
        """Whether it must not be given to another worker."""
        return self._num_in_row >= LOSSES_IN_ROW or self.num_losses >= LOSSES_IN_ALL

    def tried(self, trial: Trial) -> None:
        """It was sent to its next worker."""
        self._trial = trial

    def lost(self, *, may_be_caused: bool) -> None:
        """Its worker was lost; `may_be_caused` by a request."""
        self.num_losses += 1
        if may_be_caused and (self._trial is None or self._trial.is_alone):
            self._num_in_row += 1

    def cleared(self) -> None:
        """It has a token."""
        self._num_in_row = 0
        self._trial = None
