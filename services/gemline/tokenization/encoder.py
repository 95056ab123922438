"""Encodes without holding up the event loop, within a limit of size. Knows no wire."""

import asyncio
from collections.abc import Callable, Sequence

from gemline.errors import RequestTooLarge
from gemline.text.chat import SystemPrompt, Turn
from gemline.text.tokenizer import Tokenizer

MAX_TEXT_BYTES = 4 * 2**20

# A kilobyte takes about 0.2 ms to encode, a hop to another thread and back about 0.1 ms.
_INLINE_BYTES = 2048


class Encoder:
    """One tokenizer, and how many requests it is busy with; short texts are encoded at once, others in a thread."""

    def __init__(
        self, tokenizer: Tokenizer, system_prompt: SystemPrompt = "refuse", max_text_bytes: int = MAX_TEXT_BYTES
    ) -> None:
        self.num_running = 0
        self._tokenizer = tokenizer
        self._system_prompt = system_prompt
        self._max_text_bytes = max_text_bytes
        self._idle = asyncio.Event()
        self._idle.set()

    async def encode_prompt(self, text: str) -> list[int]:
        """The ids of a raw prompt. Raises RequestTooLarge over the limit."""
        num_bytes = self._measured([text], param="prompt")
        return await self._run(lambda: self._tokenizer.encode_prompt(text), num_bytes)

    async def encode_chat(self, turns: Sequence[Turn], *, continues: bool = False) -> list[int]:
        """The ids of a conversation, or of turns that continue one.

        Raises RequestTooLarge, or InvalidRequest when the turns break Gemma's rules.
        """
        num_bytes = self._measured([turn.content for turn in turns], param="messages")
        encode = self._tokenizer.encode_further if continues else self._tokenizer.encode_chat
        return await self._run(lambda: encode(turns, self._system_prompt), num_bytes)

    async def wait_idle(self) -> None:
        """Returns as soon as nothing is being encoded."""
        await self._idle.wait()

    def _measured(self, texts: Sequence[str], param: str) -> int:
        num_bytes = sum(len(text.encode()) for text in texts)
        if num_bytes > self._max_text_bytes:
            raise RequestTooLarge(
                f"{param} holds {num_bytes} bytes of text; the limit is {self._max_text_bytes}", param=param
            )
        return num_bytes

    async def _run(self, encode: Callable[[], list[int]], num_bytes: int) -> list[int]:
        if num_bytes <= _INLINE_BYTES:
            return encode()
        self.num_running += 1
        self._idle.clear()
        try:
            return await asyncio.to_thread(encode)
        finally:
            self.num_running -= 1
            if not self.num_running:
                self._idle.set()
