"""What an operator sets for sessions: the key that encrypts them, and the secret in their names."""

import base64
from dataclasses import replace
from typing import Any

import httpx
import pytest
import redis as sync_redis
from support.in_process import MODEL, InProcess

from gemline.errors import ConfigurationError
from gemline.gateway.process import GatewayProcess
from gemline.telemetry import off

KEY, OTHER = (base64.b64encode(bytes([number]) * 32).decode() for number in (1, 2))
TURN = {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}


async def ask(platform: InProcess, settings: dict[str, Any], method: str, path: str, body: Any = None) -> Any:
    """The answer of a gateway with these settings, which is started for it."""
    process = GatewayProcess(replace(platform.settings, **settings), off())
    addresses = await process.start()
    try:
        headers = {"authorization": f"Bearer {platform.api_key}"}
        async with httpx.AsyncClient(base_url=addresses.http, headers=headers, timeout=30) as http:
            while (await http.get("/readyz")).status_code != 200:
                pass
            return (await http.request(method, path, json=body)).json()
    finally:
        await process.stop()


def transcripts(redis_url: str) -> list[bytes]:
    with sync_redis.Redis.from_url(redis_url) as redis:
        names: Any = redis.keys("*:ids")
        return [bytes(redis.get(name) or b"") for name in names]


async def test_with_a_key_what_sessions_hold_is_encrypted_and_another_key_says_so(
    platform: InProcess, redis_url: str
) -> None:
    sealed = {"session_key": KEY}
    path = f"/v1/sessions/{(await ask(platform, sealed, 'POST', '/v1/sessions', {'model': MODEL}))['id']}"
    chat = f"{path}/chat/completions"
    assert (await ask(platform, sealed, "POST", chat, TURN))["usage"]["completion_tokens"]
    (stored,) = transcripts(redis_url)
    assert stored[0] == 1  # a sealed segment
    for settings in ({}, {"session_key": OTHER}):
        error = (await ask(platform, settings, "POST", chat, TURN))["error"]
        assert (error["code"], "is encrypted with a key" in error["message"]) == ("unavailable", True)
        assert KEY not in error["message"]
    assert "usage" in await ask(platform, {"session_key": f"{OTHER},{KEY}"}, "POST", chat, TURN)
    assert (await ask(platform, {}, "GET", path))["num_turns"] == 2


async def test_gateways_with_one_secret_share_their_sessions_and_others_do_not(platform: InProcess) -> None:
    made = await ask(platform, {"session_secret": "one"}, "POST", "/v1/sessions", {"model": MODEL})
    path = f"/v1/sessions/{made['id']}"
    assert (await ask(platform, {"session_secret": "one"}, "GET", path))["id"] == made["id"]
    assert (await ask(platform, {"session_secret": "two"}, "GET", path))["error"]["code"] == "session_not_found"


async def test_a_key_that_is_none_is_found_at_the_start(platform: InProcess) -> None:
    with pytest.raises(ConfigurationError, match="GEMLINE_SESSION_KEY holds 3 bytes") as caught:
        await GatewayProcess(replace(platform.settings, session_key="AAAA"), off()).start()
    assert caught.value.param == "session_key"


def test_settings_do_not_show_their_secrets(platform: InProcess) -> None:
    shown = repr(replace(platform.settings, session_key=KEY, session_secret="hush"))
    assert KEY not in shown
    assert "hush" not in shown
