"""The gateway as a child process, outside Ray: it faces the internet."""

import asyncio
import json
from pathlib import Path

from gemline.errors import ConfigurationError
from gemline.serve.processes import Child
from gemline.serve.settings import REDIS_URL_VARIABLE, StackSettings

_POLL_S = 0.05


class GatewayProcess:
    """Starts `gemline gateway` and learns from its ready file where it listens."""

    def __init__(
        self, settings: StackSettings, run_dir: Path, redis_url: str, keys_file: Path, admin_key: str = ""
    ) -> None:
        """Without an `admin_key` it has no admin API. Secrets travel in the environment, which others cannot read."""
        self._ready_file = run_dir / "gateway.json"
        self.http = ""
        self.grpc = ""
        self.admin = ""  # URL
        arguments = [
            "gateway",
            *("--http-host", settings.host, "--http-port", str(settings.http_port)),
            *("--grpc-host", settings.host, "--grpc-port", str(settings.grpc_port)),
            *(() if settings.admin_port is None else ("--admin-port", str(settings.admin_port))),
            *("--share-without-redis", str(settings.share_without_redis)),
            *_internal_tls(settings),
            *("--keys-file", str(keys_file), "--ready-file", str(self._ready_file)),
        ]
        environment = {REDIS_URL_VARIABLE: redis_url, "GEMLINE_ADMIN_KEY": admin_key}
        self.child = Child("gateway", arguments, run_dir / "gateway.log", environment)

    async def start(self) -> None:
        """Start it; it needs no worker to come up."""
        await self.child.start()

    def failure(self) -> str | None:
        """Why it ended; None while it runs."""
        if self.child.exit_status is None:
            return None
        return f"gateway ended with status {self.child.exit_status}: {self.child.last_words()}"

    @property
    def address(self) -> str:
        """host:port of its HTTP server, which also has /metrics."""
        return self.http.removeprefix("http://")

    async def wait_until_ready(self) -> None:
        """Return once it can answer a request."""
        while not self._ready_file.exists():
            if reason := self.failure():
                raise ConfigurationError(reason)
            await asyncio.sleep(_POLL_S)
        addresses = json.loads(self._ready_file.read_text())
        self.http, self.grpc, self.admin = addresses["http"], addresses["grpc"], addresses.get("admin", "")


def _internal_tls(settings: StackSettings) -> list[str]:
    files = {
        "--internal-tls-certificate": settings.internal_tls_certificate,
        "--internal-tls-key": settings.internal_tls_key,
        "--internal-tls-ca": settings.internal_tls_ca,
    }
    return [part for name, file in files.items() if file is not None for part in (name, str(file))]
