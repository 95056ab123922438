"""Where in the prefix cache a request could go on, told as it changes: what routers know of a worker. Knows no block.

A request may go on after a node when all before it are there in the global pool, which the tree sees to, and the last
`num_tail` of them in the local one too. So each node counts how many in a row, itself the last, have their local block.
Told are, of the nodes where a request may go on, those where one is likely to: resume points, and every `stride`-th of
a chain. What a router then predicts is never more than what a request finds, and at a resume point just that.
"""

from collections.abc import Iterable

from gemline.engine.events import ResidencyChange
from gemline.engine.prefix_tree import Node

NAME_BYTES = 8  # of a block's hash: among 2^24 blocks two share a name with a chance of one in 10^5
STRIDE = 8


class Residency:
    """Of one prefix cache. Costs what a change reaches: at most the nodes of a window behind it."""

    def __init__(self, num_tail: int, stride: int = STRIDE) -> None:
        self._num_tail = num_tail
        self._stride = stride
        self._news: dict[bytes, bool] = {}

    def take(self) -> ResidencyChange:
        """What has changed since the last time."""
        news, self._news = self._news, {}
        return ResidencyChange(
            tuple(name for name, is_told in news.items() if is_told),
            tuple(name for name, is_told in news.items() if not is_told),
        )

    def changed(self, node: Node) -> None:
        """The node is new, or its local block came or went."""
        nodes: Iterable[Node] = (node,)
        while nodes := [each for each in nodes if self._recount(each)]:
            nodes = [child for each in nodes for child in each.children]

    def marked(self, node: Node) -> None:
        """The node became a resume point, or is one no longer."""
        self._tell(node, node.num_in_row == self._num_tail)

    def gone(self, node: Node) -> None:
        """The node was evicted."""
        self._tell(node, can_go_on=False)

    def _recount(self, node: Node) -> bool:
        """Whether that made a difference, to nodes behind it too."""
        before = node.num_in_row
        row = self._num_tail if node.parent is None else node.parent.num_in_row
        node.num_in_row = 0 if node.local_id is None else min(row + 1, self._num_tail)
        self._tell(node, node.num_in_row == self._num_tail)
        return node.num_in_row != before

    def _tell(self, node: Node, can_go_on: bool) -> None:
        is_told = can_go_on and (node.point is not None or node.depth % self._stride == 0)
        if is_told != node.is_told:
            node.is_told = is_told
            self._news[node.block_hash[:NAME_BYTES]] = is_told
