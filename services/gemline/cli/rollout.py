"""`gemline rollout`: from one release on Kubernetes to the next, checked and in shares. For operators."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from gemline.cli.internal_tls import CA, CERTIFICATE, KEY
from gemline.cli.operating import actor

if TYPE_CHECKING:
    from gemline.rollout.steps import Found, Rollout

Release = Annotated[str, typer.Argument(help="name of the Helm release")]
_CONTEXT = "rollout"


def app() -> typer.Typer:
    """The commands under `gemline rollout`."""
    commands = typer.Typer(
        help="Move a release on Kubernetes to its new workers: checked, in shares, and back at once.",
        no_args_is_help=True,
    )
    commands.callback()(options)
    for command in (status, wait, pause, promote, rollback):
        commands.command()(command)
    return commands


def options(
    context: typer.Context,
    redis_url: Annotated[str, typer.Option(envvar="GEMLINE_REDIS_URL", help="where the workers register")],
    namespace: Annotated[str | None, typer.Option("--namespace", "-n", help="default: the kubeconfig's")] = None,
    kube_context: Annotated[str | None, typer.Option(help="of the kubeconfig; default: the current one")] = None,
    internal_tls_certificate: Annotated[str | None, CERTIFICATE] = None,
    internal_tls_key: Annotated[str | None, KEY] = None,
    internal_tls_ca: Annotated[str | None, CA] = None,
) -> None:
    """Where everything is. The golden check reaches the workers' own ports: run it in the cluster."""

    async def over(release: str, work: "Callable[[Rollout], Awaitable[Found]]") -> "Found":
        from gemline.cluster.connection import connect
        from gemline.cluster.releases import ReleaseShares
        from gemline.cluster.workers import WorkersView
        from gemline.rollout.kube import Kube
        from gemline.rollout.steps import Rollout
        from gemline.rpc.internal_tls import InternalTls, opener
        from gemline.rpc.tls_files import internal_files

        kube = Kube.connect(namespace, kube_context)
        files = internal_files(internal_tls_certificate, internal_tls_key, internal_tls_ca)
        redis = connect(redis_url)
        view = WorkersView(redis)
        try:
            await view.start()
            open_channel = opener(None if files is None else InternalTls(files))
            shares = ReleaseShares(redis, actor())
            return await work(Rollout(kube, view, shares, release, open_channel, lambda line: print(line, flush=True)))
        finally:
            await view.stop()
            await redis.aclose()

    context.meta[_CONTEXT] = lambda release, work: asyncio.run(over(release, work))


def status(context: typer.Context, release: Release) -> None:
    """Which workers there are, old and new, and what share each has."""
    _tell(context.meta[_CONTEXT](release, lambda rollout: rollout.look()))


def wait(
    context: typer.Context,
    release: Release,
    timeout: Annotated[float, typer.Option(help="seconds")] = 900.0,
) -> None:
    """Until the gateways are replaced and the new workers are ready to be promoted."""
    _tell(context.meta[_CONTEXT](release, lambda rollout: rollout.wait(timeout)))


def pause(context: typer.Context, release: Release) -> None:
    """Replace nothing more, and leave all requests where they are."""
    _tell(context.meta[_CONTEXT](release, lambda rollout: rollout.pause()))


def promote(
    context: typer.Context,
    release: Release,
    share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="of new requests; 1: all, and the old workers go")
    ] = 1.0,
    drain_timeout: Annotated[float, typer.Option(help="most seconds for the old workers to finish")] = 600.0,
    record_golden: Annotated[
        bool, typer.Option("--record-golden", help="take the new workers' answer for right where none is known")
    ] = False,
) -> None:
    """Check the new workers, and give them a share of new requests, or all of them."""
    work = context.meta[_CONTEXT]
    _tell(work(release, lambda it: it.promote(share, drain_timeout, record_golden=record_golden)))


def rollback(context: typer.Context, release: Release) -> None:
    """All new requests to the old workers, at once; then their configuration."""
    _tell(context.meta[_CONTEXT](release, lambda rollout: rollout.rollback()))


def _tell(found: "Found") -> None:
    objects = found.objects
    print(f"gateway  {objects.gateway_name}: {objects.gateways_behind or 'up to date'}")
    print(f"workers  {objects.service_name}{', paused' if objects.is_paused else ''}")
    for name, records in ((objects.new, found.new), *((old, found.old) for old in objects.old)):
        there = [record for record in records if record.release == name]
        kind = "new" if name == objects.new else "old"
        models = sorted({(it.model.model_id, it.model.revision[:12]) for it in there if it.model.dtype})
        shares = [f"{found.shares[model].get(name, 0):.0%}" for model, _ in models if model in found.shares]
        words = ", ".join(" ".join(model) for model in models) or "no workers"
        print(f"  {kind}  {name or 'none yet'}  {len(there)} workers  {words}  {' '.join(shares)}".rstrip())
