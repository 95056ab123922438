"""How a process writes its log: one line a record, to standard error, with secrets blotted out."""

import logging
import re
import time

# An API key keeps its id, which names it in `gemline key`; a URL keeps its host.
_SECRETS = (
    (re.compile(r"(gk_[0-9a-f]+_)[0-9a-f]+"), r"\1***"),
    (re.compile(r"(://[^\s:/@]*:)[^\s@/]+@"), r"\1***@"),
    (re.compile(r"(?i)(bearer\s+)(?!gk_)[^\s'\"]+"), r"\1***"),
)


class LineFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.123Z INFO decode[4711] gemline.host: message`, a traceback folded into the same line."""

    default_time_format = "%Y-%m-%dT%H:%M:%S"
    default_msec_format = "%s.%03dZ"

    def __init__(self, process: str) -> None:
        self.converter = time.gmtime
        super().__init__(f"%(asctime)s %(levelname)s {process}[%(process)d] %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        """The record's line."""
        return blotted(super().format(record)).replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")


def blotted(text: str) -> str:
    """`text` without the secrets in it: API keys, passwords in URLs, bearer tokens."""
    for pattern, substitute in _SECRETS:
        text = pattern.sub(substitute, text)
    return text


def setup_logging(process: str, level: int | str = logging.INFO) -> None:
    """Sends every record of this process to standard error. `process` names it: gateway, decode, ..."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(process))
    logging.basicConfig(level=level, handlers=[handler], force=True)
