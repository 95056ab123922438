"""The OpenAI-compatible HTTP front: JSON and server-sent events over the gateway's core. Knows no worker."""

from gemline.gateway.http.app import create_app

__all__ = ["create_app"]
