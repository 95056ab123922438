"""The operators' HTTP API, on a port of its own: tenants, projects, keys, usage, audit, public prefixes."""

from gemline.gateway.admin.app import create_admin_app

__all__ = ["create_admin_app"]
