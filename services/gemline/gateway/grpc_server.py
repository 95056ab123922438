"""The public gRPC server: its services, its guards and its limits. Knows no method."""

from typing import Self

import grpc.aio

from gemline.errors import ConfigurationError
from gemline.gateway.core import Gateway
from gemline.gateway.grpc_api import PublicServicer
from gemline.gateway.grpc_auth import KeyCheck
from gemline.gateway.grpc_details import rich_details
from gemline.gateway.grpc_sessions import PublicSessions
from gemline.gateway.settings import GatewaySettings, joined
from gemline.rpc.health import Health
from gemline.rpc.malformed import RefuseMalformed
from gemline.rpc.options import Options, server_options
from gemline.rpc.status import ErrorInterceptor
from gemline.v1.inference_pb2_grpc import add_InferenceServicer_to_server
from gemline.v1.sessions_pb2_grpc import add_SessionsServicer_to_server

SERVICE = "gemline.v1.Inference"
SESSIONS = "gemline.v1.Sessions"

# Clients are far away: unlike a worker, one that is silent for a second is not gone.
_PUBLIC = {
    "grpc.keepalive_time_ms": 30_000,
    "grpc.keepalive_timeout_ms": 10_000,
    "grpc.http2.ping_timeout_ms": 10_000,
    "grpc.max_send_message_length": -1,  # how much an answer may hold is its reader's to say
}


class PublicServer:
    """Listens from `start` to `stop`; health says NOT_SERVING until `set_serving(True)`."""

    def __init__(
        self, gateway: Gateway, settings: GatewaySettings, credentials: grpc.ServerCredentials | None = None
    ) -> None:
        """Without credentials it speaks plain gRPC."""
        interceptors = [ErrorInterceptor(rich_details), KeyCheck(gateway), RefuseMalformed()]
        self._server = grpc.aio.server(interceptors=interceptors, options=_options(settings.body_limit_bytes))
        add_InferenceServicer_to_server(PublicServicer(gateway), self._server)
        add_SessionsServicer_to_server(PublicSessions(gateway), self._server)
        self._health = Health(self._server, [SERVICE, SESSIONS])
        self._settings = settings
        self._credentials = credentials
        self.address = ""  # host:port

    async def start(self) -> Self:
        """Bind and serve; raises ConfigurationError when the port is taken."""
        host, port = self._settings.grpc_host, self._settings.grpc_port
        try:
            if self._credentials is None:
                bound = self._server.add_insecure_port(joined(host, port))
            else:
                bound = self._server.add_secure_port(joined(host, port), self._credentials)
        except RuntimeError as error:
            message = f"grpc_port: cannot listen on {joined(host, port)}: it is taken or not ours"
            raise ConfigurationError(message, param="grpc_port") from error
        self.address = joined(host, bound)
        await self._server.start()
        return self

    async def set_serving(self, serving: bool) -> None:
        """What health says."""
        await self._health.set_serving(serving)

    async def stop(self, grace_s: float = 0.0) -> None:
        """Take no more calls, and end after `grace_s` those that run."""
        await self._server.stop(grace_s)


def _options(max_message_bytes: int) -> Options:
    return tuple((dict(server_options(max_message_bytes)) | _PUBLIC).items())
