"""How much of the prefix cache each tenant has, and whose sessions make room under pressure. Knows no block.

While there is room nobody is limited. When a resume point has to go, and a tenant has more than its share of either
pool while others have any, it is one of that tenant's: a flood washes out its own sessions, not those of others.
"""

from dataclasses import dataclass, field
from typing import Generic, TypeVar

from gemline.engine.blocks import BlockCounts
from gemline.engine.retention import Agenda, ResumePoint

NodeT = TypeVar("NodeT")


@dataclass(slots=True)
class _Tenant(Generic[NodeT]):
    num_global: int = 0  # blocks that are cached
    num_local: int = 0  # blocks in the tails of its points
    points: set[ResumePoint[NodeT]] = field(default_factory=set)


class TenantShares(Generic[NodeT]):
    """Tenants by the roots of their trees; blocks that several of a tenant's sessions share count once."""

    def __init__(self, agenda: Agenda[NodeT], allowed: BlockCounts) -> None:
        """`allowed` is a tenant's share."""
        self._agenda = agenda
        self._allowed = allowed
        self._tenants: dict[bytes, _Tenant[NodeT]] = {}

    def count(self, root: bytes, *, num_global: int = 0, num_local: int = 0) -> None:
        """So many blocks more, or fewer."""
        tenant = self._tenants.setdefault(root, _Tenant())
        tenant.num_global += num_global
        tenant.num_local += num_local
        if not tenant.num_global:
            del self._tenants[root]

    def add(self, root: bytes, point: ResumePoint[NodeT]) -> None:
        """A new point of a tenant who has blocks."""
        self._tenants[root].points.add(point)

    def discard(self, root: bytes, point: ResumePoint[NodeT]) -> None:
        """A point is kept no longer."""
        self._tenants[root].points.discard(point)

    def victim(self) -> ResumePoint[NodeT] | None:
        """The point to give up first; None when there is none."""
        if len(self._tenants) > 1:
            greediest = max(self._tenants.values(), key=self._excess)
            if self._excess(greediest) > 0 and greediest.points:
                return max(greediest.points, key=self._agenda.distance)
        return self._agenda.farthest()

    def _excess(self, tenant: _Tenant[NodeT]) -> int:
        """Blocks beyond its share, of the pool where that is more."""
        return max(tenant.num_global - self._allowed.num_global, tenant.num_local - self._allowed.num_local)
