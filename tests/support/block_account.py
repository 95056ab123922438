"""Whose every block is, counted anew from the tables and the tree: pools and prefix cache must agree with it."""

from collections.abc import Sequence
from itertools import takewhile

from gemline.engine.blocks import BlockPool, BlockTable
from gemline.engine.prefix_tree import Node
from gemline.engine.residency import NAME_BYTES, STRIDE
from gemline.engine.roster import Roster


def check_blocks(roster: Roster) -> None:
    """Raises AssertionError where a block is leaked, owned by too many, shared by two tenants, or not where it says."""
    cache = roster._cache
    nodes = list(cache._nodes.values())
    tables = {s.arrival: (s.global_table, s.local_table) for s in roster.by_id.values()}
    local_ids = {node.local_id: node for node in nodes if node.local_id is not None}
    global_ids = {node.global_id: node for node in nodes}
    assert cache._by_global_id == global_ids and cache._by_local_id == local_ids
    assert len(global_ids) == len(nodes)
    _check_pool(roster._global_pool, {holder: table[0] for holder, table in tables.items()}, set(global_ids))
    _check_pool(roster._local_pool, {holder: table[1] for holder, table in tables.items()}, set(local_ids))
    _check_trails(roster)
    _check_tree(roster, nodes)
    _check_residency(roster, nodes)
    _check_shares(roster, nodes)


def num_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many first ids are equal."""
    return sum(takewhile(bool, (a == b for a, b in zip(one, other, strict=False))))


def held(table: BlockTable) -> list[int]:
    return [table.ids()[index] for index in range(table.num_blocks) if table.holds(index)]


def _check_pool(pool: BlockPool, tables: dict[int, BlockTable], cached: set[int]) -> None:
    holders: dict[int, set[int]] = {}
    for holder, table in tables.items():
        ids = held(table)
        assert len(ids) == len(set(ids)), "a table holds a block twice"
        for block_id in ids:
            holders.setdefault(block_id, set()).add(holder)
    idle = cached - holders.keys()
    assert all(len(who) == 1 for block_id, who in holders.items() if block_id not in cached), "shared while written"
    assert (pool.num_idle, pool.num_free) == (len(idle), pool.num_blocks - len(holders))
    assert {b for b in range(pool.num_blocks) if pool.is_held(b)} == holders.keys()
    for holder in tables:
        assert pool.num_alone(holder) == sum(who == {holder} for who in holders.values())
    assert sorted(pool._empty) == sorted(set(range(pool.num_blocks)) - holders.keys() - cached)


def _check_trails(roster: Roster) -> None:
    """A sequence's published blocks are those that its own tenant's hashes name."""
    for sequence in roster.by_id.values():
        trail = sequence.trail
        if trail is None:
            continue
        for index in range(trail.depth):
            node = roster._cache._nodes[trail.hashes[index]]
            assert node.global_id == sequence.global_table.ids()[index]
            assert node.root == trail.roots.tree(index), "shared by two tenants"
            if sequence.local_table.holds(index) and index >= trail.whole_local_from:
                assert node.local_id == sequence.local_table.ids()[index]


def _check_tree(roster: Roster, nodes: list[Node]) -> None:
    cache = roster._cache
    points = [node.point for node in nodes if node.point is not None]
    assert len(cache._agenda) == len(points)
    num_children: dict[Node, int] = {}
    num_tails: dict[Node, int] = {}
    for node in nodes:
        if node.parent is not None:
            assert cache._nodes[node.parent.block_hash] is node.parent, "a chain has lost its beginning"
            num_children[node.parent] = num_children.get(node.parent, 0) + 1
    for point in points:
        for member in cache._tail(point.node):
            assert member.local_id is not None, "a point has lost its tail"
            num_tails[member] = num_tails.get(member, 0) + 1
    for node in nodes:
        assert len(node.children) == num_children.get(node, 0)
        assert all(child.parent is node for child in node.children)
        assert node.depth == (1 if node.parent is None else node.parent.depth + 1)
        assert node.num_tails == num_tails.get(node, 0)
        is_free_leaf = not node.children and node.point is None and not cache._global_pool.is_held(node.global_id)
        assert (node in cache._loose_leaves) == is_free_leaf
        is_free_local = node.local_id is not None and not cache._local_pool.is_held(node.local_id)
        assert (node in cache._loose_locals) == (is_free_local and not node.num_tails)


def _check_residency(roster: Roster, nodes: list[Node]) -> None:
    """Told are resume points and every eighth node, where the whole tail is there."""
    cache = roster._cache
    for node in nodes:
        can_go_on = all(member.local_id is not None for member in cache._tail(node))
        is_of_note = node.point is not None or node.depth % STRIDE == 0
        assert node.is_told == (can_go_on and is_of_note)


def told(roster: Roster) -> set[bytes]:
    return {node.block_hash[:NAME_BYTES] for node in roster._cache._nodes.values() if node.is_told}


def _check_shares(roster: Roster, nodes: list[Node]) -> None:
    tenants = roster._cache._shares._tenants
    assert tenants.keys() == {node.root for node in nodes}
    for root, tenant in tenants.items():
        own = [node for node in nodes if node.root == root]
        assert tenant.num_global == len(own)
        assert tenant.num_local == sum(node.num_tails > 0 for node in own)
        assert tenant.points == {node.point for node in own if node.point is not None}
