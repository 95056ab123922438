"""What a release of the platform is in Kubernetes: its gateway, its RayService, and which Ray cluster is new or old."""

import asyncio
from dataclasses import dataclass

from gemline.errors import NotFound
from gemline.rollout.kube import Kube, Object

NO_UPGRADE = "None"  # the RayService's strategy that makes no new cluster
NEW_CLUSTER = "NewCluster"
_ORIGIN = "ray.io/originated-from-cr-name"  # KubeRay's label on the clusters of a RayService


@dataclass(frozen=True, slots=True)
class Objects:
    """As they are now."""

    release: str  # Helm's
    gateway: Object
    service: Object
    clusters: tuple[Object, ...]  # of the service, the newest first

    @property
    def service_name(self) -> str:
        """Of the RayService."""
        return str(self.service["metadata"]["name"])

    @property
    def gateway_name(self) -> str:
        """Of the gateway's Deployment."""
        return str(self.gateway["metadata"]["name"])

    @property
    def notes_name(self) -> str:
        """Of the ConfigMap where golden answers are kept."""
        return f"{self.service_name}-rollout"

    @property
    def active(self) -> str:
        """The Ray cluster that KubeRay takes for the one in service; empty: none."""
        return self._cluster_of("activeServiceStatus")

    @property
    def pending(self) -> str:
        """The one that it prepares; empty: none."""
        return self._cluster_of("pendingServiceStatus")

    @property
    def new(self) -> str:
        """The cluster of the newest configuration: its workers' release."""
        return self.pending or self.active

    @property
    def old(self) -> tuple[str, ...]:
        """The other clusters there are, the newest first."""
        return tuple(name for it in self.clusters if (name := str(it["metadata"]["name"])) != self.new)

    @property
    def is_paused(self) -> bool:
        """Whether neither gateways nor workers are replaced."""
        return bool(self.gateway["spec"].get("paused")) and self.strategy == NO_UPGRADE

    @property
    def strategy(self) -> str:
        """How the RayService upgrades."""
        return str((self.service["spec"].get("upgradeStrategy") or {}).get("type", NEW_CLUSTER))

    @property
    def gateways_behind(self) -> str:
        """Why the gateway's Deployment is not as it should be; empty: it is."""
        metadata, spec, status = (self.gateway.get(part, {}) for part in ("metadata", "spec", "status"))
        if status.get("observedGeneration", 0) < metadata.get("generation", 0):
            return "its change has not been seen yet"
        wanted = spec.get("replicas", 1)
        counts = {name: status.get(name, 0) for name in ("replicas", "updatedReplicas", "availableReplicas")}
        if all(count == wanted for count in counts.values()):
            return ""
        return f"of {wanted} there are " + ", ".join(f"{count} {name}" for name, count in counts.items())

    def back_to(self, cluster: str) -> Object:
        """The merge patch that gives the RayService the configuration which a cluster was made from."""
        made_from = next(it["spec"] for it in self.clusters if it["metadata"]["name"] == cluster)
        return {"rayClusterConfig": _turning(self.service["spec"].get("rayClusterConfig", {}), made_from)}

    def _cluster_of(self, status: str) -> str:
        return str(((self.service.get("status") or {}).get(status) or {}).get("rayClusterName", ""))


def _turning(now: Object, wanted: Object) -> Object:
    """RFC 7396's patch from one to the other. What is not wanted must be named: KubeRay takes any rest for another
    configuration, and makes a third cluster of it.
    """
    patch: Object = dict.fromkeys(now.keys() - wanted.keys())
    for name, value in wanted.items():
        before = now.get(name)
        if isinstance(value, dict) and isinstance(before, dict):
            patch[name] = _turning(before, value)
        elif value != before:
            patch[name] = value
    return patch


async def find(kube: Kube, release: str) -> Objects:
    """The release's objects. Raises NotFound, which names what there is none of."""
    ours = f"app.kubernetes.io/name=gemline,app.kubernetes.io/instance={release}"
    deployments, services = await asyncio.gather(
        kube.deployments(f"{ours},app.kubernetes.io/component=gateway"), kube.ray("rayservices", ours)
    )
    for kind, found in (("gateway Deployment", deployments), ("RayService", services)):
        if len(found) != 1:
            raise NotFound(
                f"release {release!r} in namespace {kube.namespace} has {len(found)} objects that are its {kind}, not 1"
            )
    clusters = await kube.ray("rayclusters", f"{_ORIGIN}={services[0]['metadata']['name']}")
    clusters.sort(key=lambda it: str(it["metadata"].get("creationTimestamp", "")), reverse=True)
    return Objects(release, deployments[0], services[0], tuple(clusters))
