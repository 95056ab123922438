"""Settings that cannot work are refused before anything starts."""

from typing import Any

import pytest

from gemline.errors import ConfigurationError
from gemline.gateway.settings import GatewaySettings


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"http_port": -1}, "http_port must be from 0 to 65535, not -1"),
        ({"grpc_port": 65536}, "grpc_port must be from 0 to 65535, not 65536"),
        ({"admin_port": 65536}, "admin_port must be from 0 to 65535, not 65536"),
        ({"admin_key": "fifteen letters"}, "admin_key has 15 characters, under 16"),
        ({"admin_key": "sixteen letters "}, "admin_key may have printable ASCII characters alone, and no space"),
        ({"share_without_redis": 1.5}, "share_without_redis must be from 0 to 1, not 1.5"),
        ({"body_limit_bytes": 0}, "body_limit_bytes must be above 0, not 0"),
        ({"connect_timeout_s": 0.0}, "connect_timeout_s must be above 0, not 0.0"),
        ({"encode_timeout_s": -1.0}, "encode_timeout_s must be above 0, not -1.0"),
        ({"silence_timeout_s": 0.0}, "silence_timeout_s must be above 0, not 0.0"),
        ({"resume_timeout_s": -1.0}, "resume_timeout_s must be 0 or more, not -1.0"),
        ({"quarantine_s": -1.0}, "quarantine_s must be 0 or more, not -1.0"),
        ({"drain_timeout_s": -1.0}, "drain_timeout_s must be 0 or more, not -1.0"),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        GatewaySettings(**given)
    assert message == caught.value.message


def test_the_admin_key_is_not_shown() -> None:
    assert "sesame" not in repr(GatewaySettings(admin_key="sesame" * 3))


def test_every_gateway_has_a_name_of_its_own() -> None:
    assert GatewaySettings().gateway_id != GatewaySettings().gateway_id
