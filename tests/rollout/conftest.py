"""A release in a stand-in for Kubernetes, with real workers of tiny models behind it."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from kubernetes import client
from redis.asyncio import Redis
from support.kube_api import FakeKube, fake_kube
from support.noise_model.checkpoint import TINY, make_checkpoint

from gemline.cluster.connection import connect
from gemline.cluster.records import Role
from gemline.cluster.releases import ReleaseShares
from gemline.cluster.workers import WorkersView
from gemline.decode.worker import DecodeOptions, DecodeWorker
from gemline.engine.options import EngineOptions
from gemline.host import HostSettings, Worker, WorkerHost
from gemline.rollout.kube import Kube
from gemline.rollout.steps import Rollout
from gemline.rpc.options import open_channel
from gemline.telemetry import off
from gemline.tokenization.worker import TokenizationOptions, TokenizationWorker

MODEL = "tiny"


@dataclass
class World:
    kube: FakeKube
    redis_url: str
    redis: Redis
    view: WorkersView
    shares: ReleaseShares
    running: AsyncExitStack
    lines: list[str] = field(default_factory=list)
    hosts: dict[str, list[WorkerHost]] = field(default_factory=dict)

    def rollout(self, release: str = "prod", namespace: str = "ns") -> Rollout:
        configuration = client.Configuration(host=self.kube.url)
        configuration.retries = False
        kube = Kube(client.ApiClient(configuration), namespace)
        return Rollout(kube, self.view, self.shares, release, open_channel, self.lines.append, quiet_s=0.0)

    async def start(self, cluster: str, checkpoint: Path) -> None:
        """A Ray cluster with a tokenization and a decode worker of that model."""
        labels = {"ray.io/originated-from-cr-name": "prod-gemline"}
        created = f"2026-01-01T00:00:{len(self.hosts):02}Z"
        metadata = {"name": cluster, "labels": labels, "creationTimestamp": created}
        self.kube.put("rayclusters.ray.io", {"metadata": metadata, "spec": {"rayVersion": cluster}})
        engine = EngineOptions(dtype="float32", num_kv_blocks=64, num_threads=1)
        workers: list[Worker] = [
            TokenizationWorker(TokenizationOptions(checkpoint, MODEL)),
            DecodeWorker(DecodeOptions(checkpoint, MODEL, engine, "never")),
        ]
        for worker in workers:
            host = WorkerHost(worker, HostSettings(self.redis_url, metrics_port=None, release=cluster), off())
            await host.start()
            self.running.push_async_callback(host.stop)
            self.hosts.setdefault(cluster, []).append(host)

    def kuberay(self, active: str, pending: str = "") -> None:
        """What KubeRay says of the RayService."""
        status = {"activeServiceStatus": {"rayClusterName": active}}
        if pending:
            status["pendingServiceStatus"] = {"rayClusterName": pending}
        self.kube.get("rayservices.ray.io", "prod-gemline")["status"] = status

    @property
    def strategy(self) -> str:
        return str(self.kube.get("rayservices.ray.io", "prod-gemline")["spec"]["upgradeStrategy"]["type"])

    def snapshot(self) -> str:
        """All that a failed check may not change."""
        return repr(sorted(self.kube.objects.items()))

    async def shared(self) -> dict[str, float]:
        return dict((await self.shares.all()).get(MODEL, {}))

    def num_known(self, role: Role = Role.DECODE) -> int:
        return len(self.view.workers(role))


def add_release(kube: FakeKube) -> None:
    """The objects that the chart makes, as far as a rollout looks at them."""
    labels = {"app.kubernetes.io/name": "gemline", "app.kubernetes.io/instance": "prod"}
    gateway = {"name": "prod-gemline", "labels": labels | {"app.kubernetes.io/component": "gateway"}, "generation": 1}
    counts = {"replicas": 2, "updatedReplicas": 2, "availableReplicas": 2, "observedGeneration": 9}
    pods = {
        "replicas": 2,
        "selector": {"matchLabels": {"app": "gateway"}},
        "template": {
            "metadata": {"labels": {"app": "gateway"}},
            "spec": {"containers": [{"name": "gateway", "image": "gemline:1"}]},
        },
    }
    kube.put("deployments.apps", {"metadata": gateway, "spec": pods, "status": counts})
    spec = {"upgradeStrategy": {"type": "NewCluster"}, "rayClusterConfig": {"rayVersion": "newest"}}
    kube.put("rayservices.ray.io", {"metadata": {"name": "prod-gemline", "labels": labels}, "spec": spec})


@pytest.fixture
def kube() -> Iterator[FakeKube]:
    with fake_kube() as fake:
        add_release(fake)
        yield fake


@pytest.fixture
async def world(kube: FakeKube, redis_url: str) -> AsyncIterator[World]:
    redis = connect(redis_url)
    view = WorkersView(redis)
    await view.start()
    async with AsyncExitStack() as running:
        yield World(kube, redis_url, redis, view, ReleaseShares(redis), running)
    await view.stop()
    await redis.aclose()


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another revision of the tiny model, with the same tokenizer."""
    target = tmp_path_factory.mktemp("other")
    make_checkpoint(target, TINY, seed=1)
    return target


@pytest.fixture
async def upgrade(world: World, tiny_checkpoint: Path, other_checkpoint: Path) -> World:
    """Old workers in service, new ones of another revision beside them, which KubeRay still holds for pending."""
    await world.start("old", tiny_checkpoint)
    await world.start("new", other_checkpoint)
    world.kuberay("old", "new")
    return world
