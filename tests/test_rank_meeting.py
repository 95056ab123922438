"""Where ranks meet: who has arrived is known, and nobody from elsewhere may come."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import listens_beyond_this_machine, ports

from gemline.rank_meeting import Meeting, interface_of

Open = Callable[[Path], Meeting]
PLACES = pytest.mark.parametrize(
    "opened",
    [lambda directory: Meeting.in_file(directory / "meeting", 3), lambda directory: Meeting.at_port("127.0.0.1", 3)],
    ids=["file", "port"],
)


@PLACES
def test_all_are_there_when_each_has_arrived(tmp_path: Path, opened: Open) -> None:
    meeting = opened(tmp_path)
    first, second = Meeting.at(meeting.url, 3), Meeting.at(meeting.url, 3)
    assert not meeting.are_there([1, 2])
    first.arrive(1)
    assert not meeting.are_there([1, 2])
    second.arrive(2)
    assert meeting.are_there([1, 2])


def test_a_port_is_open_at_the_address_alone_that_was_given() -> None:
    meeting = Meeting.at_port("127.0.0.1", 2)
    assert int(meeting.url.rpartition(":")[2]) in ports(os.getpid())
    assert not listens_beyond_this_machine(os.getpid())


def test_an_address_is_found_among_this_machine_s_interfaces() -> None:
    assert interface_of("127.0.0.1") == "lo"
    with pytest.raises(OSError, match=r"no network interface has the address 192\.0\.2\.7"):
        interface_of("192.0.2.7")
