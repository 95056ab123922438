"""`gemline certificates`: a CA and a certificate of a release's own, in Secrets. A job of the chart runs it."""

import asyncio
import datetime
from typing import Annotated

import typer


def certificates(
    name: Annotated[str, typer.Argument(help="the Secret that processes mount; its CA's is NAME-ca")],
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="default: the kubeconfig's")] = None,
    kube_context: Annotated[str | None, typer.Option(help="of the kubeconfig; default: the current one")] = None,
) -> None:
    """Make the certificate by which a release's processes know each other, or renew it when it is due."""
    from gemline.rollout.certificates import keep
    from gemline.rollout.kube import Kube
    from gemline.rollout.secrets import Secrets

    secrets = Secrets(Kube.connect(namespace, kube_context))
    now = datetime.datetime.now(datetime.UTC)
    asyncio.run(keep(secrets, name, now, lambda line: print(line, flush=True)))
