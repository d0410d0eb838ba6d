"""Ranks that look for each other, as threads: the meeting needs neither torch nor processes."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from data_pipeline.base.errors import UserError
from llmscale.distributed import meeting, watch
from llmscale.distributed.ranks import Place
from llmscale.distributed.wire import Line, StrangerError, run_token
from llmscale.parity.ranks import free_port

SETTINGS = {"run.seed": 4711}


def place(rank: int, size: int, port: int, address: str = "127.0.0.1") -> Place:
    return Place(rank, size, rank, size, address, port)


def leads(port: int, size: int = 2, ports: int = 1, token: bytes = b"t", seconds: float = 10.0, **options):
    """Rank 0, up to the word that all may come to torch's store."""
    where = place(0, size, port)
    judge = options.pop("judge", lambda entries: next((entry.problem for entry in entries if entry.problem), ""))
    listener = meeting.listen(where, range(port, port + ports))
    met = meeting.lead(where, listener, token, seconds, judge, **options)
    meeting.admit(met)
    met.listener.close()
    return met


def comes(
    port: int, rank: int = 1, size: int = 2, ports: int = 1, token: bytes = b"t", seconds: float = 10.0, **options
):
    return meeting.attend(
        place(rank, size, port), lambda: meeting.Target(range(port, port + ports), token), seconds, **options
    )


def together(*functions):
    """What each gives, or the mistake that it raises."""

    def outcome(function):
        try:
            return function()
        except UserError as error:
            return error

    with ThreadPoolExecutor(len(functions)) as pool:
        return [future.result(timeout=60) for future in [pool.submit(outcome, function) for function in functions]]


def test_ranks_meet_and_know_each_others_hosts():
    port = free_port()
    met = together(lambda: leads(port, 3), lambda: comes(port, 2, 3), lambda: comes(port, 1, 3))
    assert [each.hosts for each in met] == [[socket.gethostname()] * 3] * 3
    assert len({each.group for each in met}) == 1
    assert [sorted(each.lines) for each in met] == [[1, 2], [0], [0]]
    assert {each.own_address for each in met} == {"127.0.0.1"}


def test_a_stranger_neither_reads_nor_joins():
    """It can connect, since it is on the same machine; it has no token."""
    port = free_port()
    said = []

    def stranger():
        end = time.monotonic() + 5
        while True:
            try:
                connection = socket.create_connection(("127.0.0.1", port), timeout=5)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < end
        with connection:
            connection.sendall(json.dumps({"llmscale": 1, "nonce": "x"}).encode() + b"\n")
            said.append(connection.recv(65536))
            connection.sendall(b'{"proof": "guessed"}\n{"rank": 1, "size": 2, "host": "h", "pid": 1, "problem": "", ')
            connection.sendall(b'"settings": {}}\n')
            said.append(connection.recv(65536))
        return comes(port)

    lead, other = together(lambda: leads(port, settings=SETTINGS), stranger)
    assert b"4711" not in b"".join(said)
    assert set(json.loads(said[0])) == {"llmscale", "nonce", "proof"}
    assert said[1] == b""
    assert lead.hosts == other.hosts


def test_what_listens_elsewhere_learns_nothing_of_the_token():
    """A program that has the port of rank 0 is not taken for it."""
    with socket.create_server(("127.0.0.1", 0)) as impostor:
        heard = []

        def serve():
            connection, _ = impostor.accept()
            line = Line(connection)
            heard.append(line.receive(time.monotonic() + 5))
            line.send({"llmscale": 1, "nonce": "y", "proof": "guessed"})
            with pytest.raises(ConnectionError):
                heard.append(line.receive(time.monotonic() + 5))

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(StrangerError):
            Line(socket.create_connection(impostor.getsockname())).greet(b"secret", time.monotonic() + 5)
        impostor.close()
    thread.join(10)
    assert [set(message) for message in heard] == [{"llmscale", "nonce"}]


def test_another_program_and_another_run_on_the_port_are_passed_by(monkeypatch):
    """The wanted port is a silent program's, the next one another run's; both runs meet all the same."""
    monkeypatch.setattr(meeting, "_ANSWER_SECONDS", 0.5)
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        found = together(
            *(lambda token=token: leads(port, ports=8, token=token) for token in (b"a", b"b")),
            *(lambda token=token: comes(port, ports=8, token=token, seconds=30) for token in (b"a", b"b")),
        )
    assert not any(isinstance(each, UserError) for each in found), found
    groups = [each.group for each in found]
    assert groups[:2] == groups[2:]
    assert groups[0] != groups[1]
    assert port not in [each.port for each in found]


def test_a_port_in_use_that_a_person_has_chosen_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"port {port} .*in use.*MASTER_PORT") as caught:
            leads(port)
    assert not caught.value.everywhere


def test_who_is_missing_is_said_in_time_and_to_all_that_came():
    port = free_port()
    began = time.monotonic()
    lead, other = together(lambda: leads(port, 6, seconds=1), lambda: comes(port, 3, 6, seconds=1))
    assert 1 <= time.monotonic() - began < 5
    assert str(lead) == str(other)
    assert "4 of 6 ranks did not come within 1 s: rank(s) 1-2, 4-5; here are rank(s) 0, 3 on" in str(lead)


def test_a_rank_that_does_not_find_rank_0_says_where_it_looked():
    port = free_port()
    began = time.monotonic()
    with pytest.raises(
        UserError, match=f"MASTER_ADDR 127.0.0.1, port {port}, within 0.5 s .*nothing listens"
    ) as caught:
        comes(port, seconds=0.5)
    assert time.monotonic() - began < 5
    assert not caught.value.everywhere
    with pytest.raises(UserError, match=r"MASTER_ADDR no-such-host\.invalid"):
        meeting.attend(
            place(1, 2, port, "no-such-host.invalid"), lambda: meeting.Target(range(port, port + 1), b"t"), 0.5
        )


@pytest.mark.parametrize(
    ("second", "says"),
    [({"rank": 1}, "two processes are rank 1"), ({"rank": 1, "size": 4}, "WORLD_SIZE 4, but rank 0 for 3")],
)
def test_ranks_that_contradict_each_other_all_hear_it(second, says):
    port = free_port()
    found = together(lambda: leads(port, 3), lambda: comes(port, 1, 3), lambda: comes(port, **{"size": 3, **second}))
    # Whoever of two equal ones comes first is no worse.
    assert says in str(found[0])
    assert sum(says in str(each) for each in found) >= 2


def test_a_problem_of_any_rank_is_heard_by_all():
    port = free_port()
    found = together(lambda: leads(port), lambda: comes(port, problem="no file x"))
    assert [str(each) for each in found] == ["no file x"] * 2


def test_tokens_differ_by_the_secret(monkeypatch):
    monkeypatch.delenv("LLMSCALE_TOKEN", raising=False)
    without = run_token()
    monkeypatch.setenv("LLMSCALE_TOKEN", "a")
    assert len({without, run_token(), run_token("nonce")}) == 3


@pytest.fixture
def watches():
    """Makes rank 0's and rank 2's watches of three ranks, and rank 1's bare line."""
    opened = []

    def make():
        port = free_port()
        lead, first, second = together(lambda: leads(port, 3), lambda: comes(port, 1, 3), lambda: comes(port, 2, 3))
        opened.extend([watch.Watch(0, lead.hosts, lead.lines), watch.Watch(2, second.hosts, second.lines)])
        return opened[-2], first.lines[0], opened[-1]

    yield make
    for each in opened:  # one that has heard of a loss would end this process
        each.close()


def test_a_rank_that_dies_is_known_to_all_and_one_that_says_so_with_its_reason(watches):
    for reason in ("", "UserError: no room"):
        lead, dying, other = watches()
        if reason:
            dying.send({"ends": reason})
        dying.close()
        for each in (lead, other):
            loss = each.loss(5)
            assert (loss.rank, loss.host, loss.reason) == (1, socket.gethostname(), reason)


def test_ranks_that_end_well_are_no_loss(watches):
    lead, first, other = watches()
    first.send({"ends": ""})
    first.close()
    other.close()
    assert lead.loss(0.5) is None


def test_the_death_of_rank_0_is_known_to_the_others(watches):
    lead, first, other = watches()
    lead._lines[2].socket.shutdown(socket.SHUT_RDWR)
    assert other.loss(5).rank == 0
    first.close()
