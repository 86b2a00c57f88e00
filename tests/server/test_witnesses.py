import struct

import pytest

from lockstep_proto.codec import NodeChunk, Sums
from lockstep_server.witnesses import Dispute, Vote, Witnesses, checksum


def chunk(value=1.0, node=(0, 4), index=0, loss=0.5):
    return NodeChunk(1, 7, node, index, Sums(8.0, loss, 0.0), 0.0, struct.pack("<4f", value, 2.0, 3.0, 4.0))


def test_a_checksum_is_that_of_the_values_and_of_the_sums():
    assert checksum(chunk()) == checksum(chunk()._replace(compute_s=9.0))
    assert len({checksum(chunk()), checksum(chunk(value=1.0000001)), checksum(chunk(loss=0.25))}) == 3


def test_equal_copies_say_nothing():
    witnesses = Witnesses()
    witnesses.accepted("a", chunk())
    assert witnesses.again("b", chunk()) is None
    assert witnesses.again("b", chunk(node=(0, 2))) is None, "its values are part of another node's"
    assert witnesses.content


def test_a_difference_opens_a_dispute_that_keeps_the_round_open_and_the_asked_worker_votes():
    witnesses = Witnesses()
    witnesses.accepted("a", chunk())
    witnesses.accepted("a", chunk(index=1))
    dispute = witnesses.again("b", chunk(value=5.0))
    assert not witnesses.content
    assert dispute.verdict() is None
    assert [node for node, _ in witnesses.unasked()] == [(0, 4)]
    dispute.asked = "c"
    assert witnesses.again("d", chunk()) is None, "nobody asked it"
    assert witnesses.again("c", chunk(index=1)) is None
    assert witnesses.again("c", chunk()) is dispute
    assert dispute.verdict() == (0, ["b"], False)
    witnesses.settle((0, 4))
    assert witnesses.content


@pytest.mark.parametrize(
    ("votes", "wrong", "applied_is_wrong"),
    [
        (["a1", "b2", "c1"], ["b"], False),
        (["a1", "b2", "c2"], ["a"], True),
        (["a1", "b2", "a2"], ["a"], True),
        (["a1", "b2", "a1", "b1"], ["b"], False),
        (["a1", "a2", "a1"], ["a"], False),
        (["a1", "a2", "a2"], ["a"], True),
        (["a1", "b2", "c3", "d3"], ["a", "b"], True),
    ],
)
def test_the_value_that_two_workers_agree_on_is_right(votes, wrong, applied_is_wrong):
    verdict = Dispute(3, [Vote(vote[0], int(vote[1])) for vote in votes]).verdict()
    assert verdict == (3, wrong, applied_is_wrong)


@pytest.mark.parametrize("votes", [["a1", "b2"], ["a1", "b2", "a1"], ["a1", "a2"], ["a1", "b2", "c3"]])
def test_one_workers_word_against_anothers_decides_nothing(votes):
    assert Dispute(0, [Vote(vote[0], int(vote[1])) for vote in votes]).verdict() is None


def test_a_third_worker_is_asked_before_the_two_and_in_the_end_nobody():
    dispute = Dispute(0, [Vote("a", 1), Vote("b", 2)])
    assert dispute.next_witness(["a", "b", "c"]) == "c"
    assert dispute.next_witness(["a", "b"]) == "a"
    dispute.votes.append(Vote("a", 1))
    assert dispute.next_witness(["a", "b"]) == "b"
    dispute.votes.append(Vote("b", 2))
    assert dispute.next_witness(["a", "b"]) is None
    alone = Dispute(0, [Vote("a", 1), Vote("a", 2)])
    assert alone.next_witness(["a"]) == "a"


def audited():
    return Witnesses(audits=lambda node: True)


def test_an_audited_node_keeps_the_round_open_until_a_second_copy_of_every_chunk_is_there():
    witnesses = audited()
    witnesses.given("a", (0, 4), 2)
    witnesses.given("b", (0, 4), 2)
    for index in (0, 1):
        witnesses.accepted("a", chunk(index=index))
    witnesses.again("b", chunk())
    assert not witnesses.content
    assert list(witnesses.unconfirmed()) == [], "b is computing"
    witnesses.again("b", chunk(index=1))
    assert witnesses.content


def test_another_is_asked_for_the_second_copy_when_its_worker_is_lost():
    witnesses = audited()
    witnesses.given("a", (0, 4), 1)
    witnesses.given("b", (0, 4), 1)
    witnesses.accepted("a", chunk())
    witnesses.lost("b")
    assert not witnesses.content
    assert list(witnesses.unconfirmed()) == [((0, 4), "a")]


def test_what_is_sent_twice_is_no_second_copy():
    witnesses = audited()
    witnesses.given("a", (0, 4), 1)
    witnesses.accepted("a", chunk())
    witnesses.again("a", chunk())
    assert not witnesses.content
    witnesses.given("a", (0, 4), 1)
    witnesses.again("a", chunk())
    assert witnesses.content, "it has computed it twice"


def test_a_second_chunk_that_differs_has_its_turn_after_the_first():
    witnesses = Witnesses()
    for index in (0, 1):
        witnesses.accepted("a", chunk(index=index))
    dispute = witnesses.again("b", chunk(value=5.0))
    assert witnesses.again("b", chunk(value=5.0, index=1)) is None
    dispute.asked = "c"
    assert witnesses.again("c", chunk()) is dispute
    witnesses.settle((0, 4))
    assert list(witnesses.unconfirmed()) == [((0, 4), "a")]
    assert witnesses.again("d", chunk(value=5.0, index=1)).chunk_index == 1


def test_a_lost_worker_is_not_asked_any_more():
    witnesses = Witnesses()
    witnesses.accepted("a", chunk())
    witnesses.again("b", chunk(value=5.0)).asked = "c"
    assert list(witnesses.unasked()) == []
    witnesses.lost("c")
    assert [node for node, _ in witnesses.unasked()] == [(0, 4)]
