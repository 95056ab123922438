"""The prefix cache: full blocks by hash, in both pools, kept when their sequences go. Knows no tensor and no scheduler.

What a hit needs. A request can go on after n of its blocks when the global blocks [0, n) are cached, and the local
ones of the window before n: the last ceil((window - 1) / block_size) of them, the tail. A hit is the longest such n
that leaves at least one token to compute.

What is kept. Blocks form a tree by their hashes. A node is a block of the global pool, whose predecessors are all
there, and of the local pool while that is kept. What the cache keeps for its own sake are resume points: nodes where a
next request may go on, with all before them in the global pool and the tail in the local one. They are made where a
prompt ends, where a sequence ends or is cut short, and at the end of a shared prefix: a public one, or where a request
left the path of an earlier one. Local blocks that left the window anywhere else are loose: they serve who happens to
come while there is room.

What is evicted. A pool that has no empty block evicts a loose one:
- in the local pool, one that is in no point's tail, the longest loose first;
- in the global pool, a leaf that is no point, and next its parent, so a chain goes from its deepest block on.
When none is loose, the point that `retention` is most ready to give up is dropped, and its tail, and its chain down to
where another point needs it, are loose in both pools at once: a chain without its tail is worth nothing. Blocks that a
sequence holds are never evicted; whoever needs a node's block in either pool holds all before it in the global one.
When a session goes on from its last point and ends farther on, the old point is dropped: nobody else came there.

Sharing. A block is published when it is full and computed, and never written again. A sequence that computed a block
which is there already takes that one and frees its own, so equal blocks are held once. Hashes begin at a tenant's salt,
those of a public prefix apart; a sequence without a salt is not cached. Each operation costs the blocks it touches.
"""

from collections import OrderedDict
from collections.abc import Iterator

from gemline.engine.block_hash import Roots, extend_hashes
from gemline.engine.blocks import BlockCounts, BlockPool, num_blocks_for
from gemline.engine.events import ResidencyChange
from gemline.engine.prefix_tree import CacheUse, Known, Match, Node, Trail
from gemline.engine.residency import Residency
from gemline.engine.retention import Agenda, Memory, ResumePoint
from gemline.engine.sequence import Sequence
from gemline.engine.tenancy import TenantShares

_MEMORIES = 8  # of evicted blocks for each block of the pool; one takes about 250 bytes


class PrefixCache:
    """Of one engine, over its two pools. `window` is in positions, the newest included."""

    def __init__(
        self,
        global_pool: BlockPool,
        local_pool: BlockPool,
        block_size: int,
        window: int,
        model_revision: str | None,
        tenant_share: float = 0.5,
    ) -> None:
        """Without a revision to name blocks by nothing is cached. `tenant_share` is of either pool."""
        self._global_pool = global_pool
        self._local_pool = local_pool
        self._block_size = block_size
        self._num_tail = num_blocks_for(window - 1, block_size)
        self._revision = model_revision
        self._residency = Residency(self._num_tail)
        self._nodes: dict[bytes, Node] = {}
        self._by_global_id: dict[int, Node] = {}
        self._by_local_id: dict[int, Node] = {}
        self._loose_leaves: OrderedDict[Node, None] = OrderedDict()
        self._loose_locals: OrderedDict[Node, None] = OrderedDict()
        self._agenda: Agenda[Node] = Agenda(max_memories=_MEMORIES * global_pool.num_blocks)
        allowed = BlockCounts(*(int(tenant_share * pool.num_blocks) for pool in (global_pool, local_pool)))
        self._shares = TenantShares(self._agenda, allowed)
        self._num_queried_tokens = self._num_hit_tokens = self._num_evicted_global = self._num_evicted_local = 0

    @property
    def use(self) -> CacheUse:
        """What the cache was good for so far."""
        num_evicted = BlockCounts(self._num_evicted_global, self._num_evicted_local)
        return CacheUse(self._num_queried_tokens, self._num_hit_tokens, num_evicted)

    def take_residency(self) -> ResidencyChange:
        """Where requests can go on now and could not when this was last asked, and the other way round."""
        return self._residency.take()

    def begin(self, salt: bytes, num_public_tokens: int = 0) -> Trail | None:
        """The trail of a new sequence; None when it has no salt and shares nothing."""
        if not salt or self._revision is None:
            return None
        return Trail(Roots.of(self._revision, salt, num_public_tokens // self._block_size))

    def match(self, sequence: Sequence) -> Match:
        """The longest prefix that both pools can serve now. Changes nothing."""
        trail, size = sequence.trail, self._block_size
        num_known = (sequence.num_tokens - 1) // size
        if trail is None or not num_known:
            return Match.none()
        extend_hashes(trail.hashes, trail.roots, sequence.token_ids, size, num_known)
        path: list[Node] = []
        num_blocks = num_in_row = 0
        for block_hash in trail.hashes[:num_known]:
            node = self._nodes.get(block_hash)
            if node is None:
                break
            path.append(node)
            num_in_row = 0 if node.local_id is None else num_in_row + 1
            if num_in_row >= self._num_tail or num_in_row == len(path):
                num_blocks = len(path)
        num_local = min(num_blocks, self._num_tail)
        tail = path[num_blocks - num_local : num_blocks]
        num_idle = BlockCounts(
            sum(not self._global_pool.is_held(node.global_id) for node in path[:num_blocks]),
            sum(node.local_id is not None and not self._local_pool.is_held(node.local_id) for node in tail),
        )
        return Match(path, num_blocks, num_local, num_idle)

    def admit(self, sequence: Sequence, match: Match) -> int:
        """Gives a sequence without blocks those of the match; returns how many positions that is."""
        trail = sequence.trail
        if trail is None:
            return 0
        num_tokens, holder = match.num_blocks * self._block_size, sequence.arrival
        self._agenda.now += 1
        sequence.local_table.skip_before((match.num_blocks - match.num_local) * self._block_size)
        for depth, node in enumerate(match.path[: match.num_blocks], start=1):
            self._global_pool.hold(node.global_id, holder)
            self._loose_leaves.pop(node, None)
            sequence.global_table.append(node.global_id)
            if depth > match.num_blocks - match.num_local and node.local_id is not None:
                self._local_pool.hold(node.local_id, holder)
                self._loose_locals.pop(node, None)
                sequence.local_table.append(node.local_id)
        trail.depth = trail.num_hit = match.num_blocks
        trail.node = match.path[match.num_blocks - 1] if match.num_blocks else None
        self._visit(trail, match.path)
        if not trail.was_admitted:
            trail.was_admitted = True
            self._num_queried_tokens += sequence.num_tokens
            self._num_hit_tokens += num_tokens
        for node in match.path:
            node.last_used = self._agenda.now
        return num_tokens

    def expect_import(self, sequence: Sequence, start: int) -> None:
        """What the sequence has not found will come, of local layers from `start` on, and not what is before."""
        self.release_before(sequence, start)
        if not sequence.local_table.num_held:
            sequence.local_table.skip_before(start)
        if sequence.trail is not None and start > sequence.num_computed:
            sequence.trail.whole_local_from = num_blocks_for(start, self._block_size)

    def publish(self, sequence: Sequence) -> None:
        """Its computed blocks are for everybody of its tenant from now on."""
        trail = sequence.trail
        if trail is None:
            return
        num_blocks = sequence.num_computed // self._block_size
        extend_hashes(trail.hashes, trail.roots, sequence.token_ids, self._block_size, num_blocks)
        for index in range(trail.depth, num_blocks):
            trail.node = self._publish(sequence, index, trail, trail.node)
            trail.depth = index + 1
            if trail.depth == trail.branch_depth:
                self._mark(trail.node, trail.branch_interval, is_shared=True)
            elif trail.depth == trail.roots.num_public:
                self._mark(trail.node, None, is_shared=True)
        if sequence.num_computed == sequence.num_given and trail.node is not None:
            trail.prompt_end = self._mark(trail.node, trail.interval)

    def release_before(self, sequence: Sequence, position: int) -> None:
        """Its local blocks wholly before the position are not needed any more."""
        block_ids = sequence.local_table.release_before(position)
        if block_ids:
            self._release_local(block_ids, sequence.arrival)

    def leave(self, sequence: Sequence, *, comes_back: bool = False) -> None:
        """The sequence goes without its blocks; what it published stays. `comes_back`: it will, and soon."""
        trail = sequence.trail
        if trail is not None and trail.node is not None:
            if not comes_back:
                self._agenda.end_turn()
            self._end(trail, trail.node, 0 if comes_back else trail.interval)
        self._release(sequence)

    def retract(self, sequence: Sequence) -> None:
        """The sequence failed: it goes, and what it published goes with it as far as nobody else has come upon it."""
        trail = sequence.trail
        node, num_own = (None, 0) if trail is None else (trail.node, trail.depth - trail.num_hit)
        if trail is not None and (point := trail.prompt_end) is not None and point.entry and not point.num_uses:
            self._drop(point)
        self._release(sequence)
        while node is not None and num_own and node in self._loose_leaves:
            parent, num_own = node.parent, num_own - 1
            self._evict_leaf(node)
            node = parent

    def make_room(self, *, is_local: bool) -> None:
        """Empties one block of that pool. Raises IndexError when every block there is held."""
        loose = self._loose_locals if is_local else self._loose_leaves
        while not loose:
            point = self._shares.victim()
            if point is None:
                raise IndexError(f"every block of the {'local' if is_local else 'global'} pool is held")
            self._drop(point)
        node = next(iter(loose))
        self._num_evicted_local += node.local_id is not None
        if is_local:
            self._empty_local(node)
        else:
            self._num_evicted_global += 1
            self._agenda.remember(node.block_hash, Memory(node.last_used, node.is_end))
            self._evict_leaf(node)

    def _visit(self, trail: Trail, path: list[Node]) -> None:
        """Learns from how far the request's way is known, and when it was last gone."""
        trail.resumed, trail.branch_depth = None, 0
        known = self._deepest_known(trail.hashes, path)
        if known is None:
            return
        now, point = self._agenda.now, next((node.point for node in reversed(path) if node.point), None)
        is_own = point is not None and not point.is_shared
        interval = now - (point.last_used if point is not None and is_own else known.last_used)
        if not trail.was_admitted:
            is_next_turn = is_own or known.is_end
            self._agenda.learn(interval, is_next_turn=is_next_turn)
            trail.interval = interval if is_next_turn else None
        if point is not None:
            point.num_uses += 1
            point.interval = now - point.last_used
            trail.resumed = point
            self._agenda.expect(point)
        if known.is_crossing and not is_own:
            trail.branch_depth, trail.branch_interval = known.depth, interval
            if trail.node is not None and trail.depth == known.depth:
                self._mark(trail.node, interval, is_shared=True)

    def _deepest_known(self, hashes: list[bytes], path: list[Node]) -> Known | None:
        for depth in range(len(hashes), len(path), -1):
            memory = self._agenda.recall(hashes[depth - 1])
            if memory is not None:
                return Known(depth, memory.last_used, memory.is_end, is_crossing=not memory.is_end)
        if not path:
            return None
        node = path[-1]
        is_crossing = bool(node.children) and node.point is None
        return Known(len(path), node.last_used, node.is_end, is_crossing=is_crossing)

    def _publish(self, sequence: Sequence, index: int, trail: Trail, parent: Node | None) -> Node:
        """The node of that block: a new one of its own blocks, or the one that is there, taken in their place."""
        block_hash = trail.hashes[index]
        global_id = sequence.global_table.ids()[index]
        local_id = sequence.local_table.ids()[index] if sequence.local_table.holds(index) else None
        node = self._nodes.get(block_hash)
        if node is None:
            node = Node(block_hash, parent, global_id, None, self._agenda.now, index + 1, trail.roots.tree(index))
            self._nodes[block_hash] = self._by_global_id[global_id] = node
            self._global_pool.cache(global_id)
            self._shares.count(node.root, num_global=1)
            self._agenda.forget(block_hash)
            if parent is not None:
                parent.children[node] = None
        else:
            node.last_used = self._agenda.now
            self._global_pool.hold(node.global_id, sequence.arrival)
            self._loose_leaves.pop(node, None)
            sequence.global_table.replace(index, node.global_id)
            self._global_pool.release((global_id,), sequence.arrival)
        if local_id is not None:
            self._publish_local(sequence, index, local_id, node)
        self._residency.changed(node)
        return node

    def _publish_local(self, sequence: Sequence, index: int, local_id: int, node: Node) -> None:
        if node.local_id is not None:
            self._local_pool.hold(node.local_id, sequence.arrival)
            self._loose_locals.pop(node, None)
            sequence.local_table.replace(index, node.local_id)
            self._local_pool.release((local_id,), sequence.arrival)
        elif sequence.trail is not None and index >= sequence.trail.whole_local_from:
            node.local_id = local_id
            self._by_local_id[local_id] = node
            self._local_pool.cache(local_id)

    def _end(self, trail: Trail, node: Node, interval: int | None) -> None:
        """A point where the sequence ends, in place of the one it went on from unless others came there too."""
        end = self._mark(node, interval)
        resumed = trail.resumed
        if end is None or resumed is None or resumed is end or not resumed.entry:
            return
        if resumed.is_private:
            for point in (resumed, resumed.partner):
                if point is not None and point.entry and point.is_private and point is not trail.prompt_end:
                    point.node.is_end = False
                    self._drop(point)
        if end is not trail.prompt_end:
            end.partner = trail.prompt_end

    def _mark(self, node: Node, interval: int | None, *, is_shared: bool = False) -> ResumePoint[Node] | None:
        """The point at a node, expected from now on; None when its tail is not whole."""
        node.is_end = node.is_end or not is_shared
        point = node.point
        if point is None:
            tail = list(self._tail(node))
            if any(member.local_id is None for member in tail):
                return None
            for member in tail:
                self._shares.count(member.root, num_local=not member.num_tails)
                member.num_tails += 1
                self._loose_locals.pop(member, None)
            self._loose_leaves.pop(node, None)
            point = node.point = ResumePoint(node, self._agenda.now, interval, is_shared=is_shared)
            self._shares.add(node.root, point)
            self._residency.marked(node)
        point.is_shared = point.is_shared or is_shared
        self._agenda.expect(point)
        return point

    def _drop(self, point: ResumePoint[Node]) -> None:
        """What no other point needs, and nobody holds, is loose from now on; the deepest local block first."""
        node = point.node
        node.point = None
        self._residency.marked(node)
        self._agenda.discard(point)
        self._shares.discard(node.root, point)
        for member in self._tail(node):
            member.num_tails -= 1
            self._shares.count(member.root, num_local=-(not member.num_tails))
            self._loosen_local(member)
        self._loosen_leaf(node)

    def _tail(self, node: Node) -> Iterator[Node]:
        """The nodes whose local blocks are needed to go on from there, the deepest first."""
        member: Node | None = node
        for _ in range(self._num_tail):
            if member is None:
                return
            yield member
            member = member.parent

    def _release(self, sequence: Sequence) -> None:
        self._release_local(sequence.local_table.release_all(), sequence.arrival)
        idle = self._global_pool.release(reversed(sequence.global_table.release_all()), sequence.arrival)
        for block_id in idle:
            self._loosen_leaf(self._by_global_id[block_id])
        if (trail := sequence.trail) is not None:
            trail.depth, trail.node, trail.resumed, trail.prompt_end, trail.whole_local_from = 0, None, None, None, 0

    def _release_local(self, block_ids: list[int], holder: int) -> None:
        for block_id in self._local_pool.release(block_ids, holder):
            self._loosen_local(self._by_local_id[block_id])

    def _loosen_local(self, node: Node) -> None:
        if not node.num_tails and node.local_id is not None and not self._local_pool.is_held(node.local_id):
            self._loose_locals[node] = None

    def _loosen_leaf(self, node: Node) -> None:
        if not node.children and node.point is None and not self._global_pool.is_held(node.global_id):
            self._loose_leaves[node] = None

    def _empty_local(self, node: Node) -> None:
        if node.local_id is not None:
            self._loose_locals.pop(node, None)
            del self._by_local_id[node.local_id]
            self._local_pool.uncache(node.local_id)
            node.local_id = None
            self._residency.changed(node)

    def _evict_leaf(self, node: Node) -> None:
        """Both its blocks; its parent, if that is loose now, is the next to go."""
        del self._nodes[node.block_hash], self._by_global_id[node.global_id], self._loose_leaves[node]
        self._empty_local(node)
        self._global_pool.uncache(node.global_id)
        self._residency.gone(node)
        self._shares.count(node.root, num_global=-1)
        if (parent := node.parent) is not None:
            del parent.children[node]
            self._loosen_leaf(parent)
            if parent in self._loose_leaves:
                self._loose_leaves.move_to_end(parent, last=False)
