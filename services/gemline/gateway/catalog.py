"""Which models there are, from the workers that serve them. Remembers those it has seen."""

from gemline.cluster.records import ModelCard, Role, State
from gemline.cluster.workers import WorkersView
from gemline.errors import ModelNotFound, Unavailable


class Catalog:
    """A model is served when a decode worker has it."""

    def __init__(self, view: WorkersView) -> None:
        self._view = view
        self._seen: set[str] = set()

    def cards(self) -> tuple[ModelCard, ...]:
        """One card per model that is served now, by name; that of a worker which takes requests if there is one."""
        records = self._view.workers(Role.DECODE)
        ready_last = sorted(records, key=lambda record: record.state is State.READY)
        by_id = {record.model.model_id: record.model for record in ready_last}
        self._seen |= by_id.keys()
        return tuple(by_id[model_id] for model_id in sorted(by_id))

    def has_seen(self, model_id: str) -> bool:
        """Whether the name was ever that of a model."""
        return model_id in self._seen

    def card(self, model_id: str) -> ModelCard:
        """The card of a model.

        Raises ModelNotFound for a name nobody ever served, Unavailable for one whose workers are away.
        """
        cards = self.cards()
        for card in cards:
            if card.model_id == model_id:
                return card
        if model_id in self._seen or not self._seen:
            raise Unavailable(f"no worker serves model {_quoted(model_id)} now; try again")
        names = ", ".join(sorted(self._seen))
        raise ModelNotFound(f"there is no model {_quoted(model_id)}; there is: {names}", param="model")


def _quoted(model_id: str) -> str:
    return repr(model_id[:200])
