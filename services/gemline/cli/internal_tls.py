"""Options of every process that serves or dials inside: the files of mutual TLS between processes.

A mounted secret of cert-manager's has them as tls.crt, tls.key and ca.crt. Each has a variable, too, for whoever types
commands in a pod.
"""

import typer

_PANEL = "TLS between processes"

CERTIFICATE = typer.Option(
    envvar="GEMLINE_INTERNAL_TLS_CERTIFICATE",
    help="PEM chain for the name gemline-internal; read again when it changes",
    rich_help_panel=_PANEL,
)
KEY = typer.Option(envvar="GEMLINE_INTERNAL_TLS_KEY", help="its key, PEM, without a passphrase", rich_help_panel=_PANEL)
CA = typer.Option(
    envvar="GEMLINE_INTERNAL_TLS_CA",
    help="PEM, who signs the certificates of all our processes",
    rich_help_panel=_PANEL,
)
