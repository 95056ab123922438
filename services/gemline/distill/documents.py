"""Training examples from an operator's text files. Knows no model."""

from pathlib import Path
from random import Random

from gemline.distill.examples import Example
from gemline.errors import ConfigurationError
from gemline.text.tokenizer import Tokenizer

_SEPARATOR = "<bos>"


class Documents:
    """Pieces of documents in an order drawn from a seed, each no longer than `max_length` tokens, <bos> included.

    A file is one document, or several with <bos> between them. Control tokens act as in a raw prompt, so conversations
    in Gemma's template are learned as such.

    Raises ConfigurationError that names the file which cannot be read, is not UTF-8 or holds no text.
    """

    def __init__(self, paths: list[Path], tokenizer: Tokenizer, max_length: int, seed: int) -> None:
        self._bos_id = tokenizer.bos_id
        self._seed = seed
        self._pieces = [piece for path in paths for piece in _pieces(path, tokenizer, max_length - 1)]
        self._epoch, self._order = -1, list(range(len(self._pieces)))

    def __call__(self, index: int, progress: float) -> Example:
        """Every piece once, in a shuffled order; then all again, in another."""
        epoch, place = divmod(index, len(self._pieces))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, list(range(len(self._pieces)))
            Random(f"{self._seed} {epoch}").shuffle(self._order)
        piece = self._pieces[self._order[place]]
        return Example([self._bos_id, *piece], [False] + [True] * len(piece))


def _pieces(path: Path, tokenizer: Tokenizer, length: int) -> list[list[int]]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"--text {path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"--text {path}: not UTF-8 at byte {error.start}") from error
    documents = [document for document in text.split(_SEPARATOR) if document.strip()]
    if not documents:
        raise ConfigurationError(f"--text {path}: empty, nothing can be learned from it")
    encoded = [tokenizer.encode_prompt(document)[1:] for document in documents]
    return [ids[start : start + length] for ids in encoded for start in range(0, len(ids), length)]
