"""`doctor --hosts`: two machines reach each other and see one folder; each fault is a line of its own."""

import json
import socket
import threading

import pytest
from programs import free_port

from mindspeed_mm.cli import hosts
from mindspeed_mm.cli.findings import ERROR, OK, WARNING

HERE = "127.0.0.1"


def found(port, folders=(), names=(HERE,), wait_s=0.5):
    return list(hosts.examine_hosts(names, port, list(map(str, folders)), wait_s))


def test_a_machine_reaches_itself_and_sees_its_folder(tmp_path):
    lines = found(free_port(), [tmp_path])
    assert [line.state for line in lines] == [OK, OK]
    assert "answers at port" in str(lines[0]) and f"sees {tmp_path} as this machine does" in str(lines[1])
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def other():
    """Function that starts another machine's listener with folders of its own; returns its port."""
    ended, threads = threading.Event(), []

    def start(*folders) -> int:
        port, ready = free_port(), threading.Event()

        def listen():
            with hosts._listening(port, list(map(str, folders))):
                ready.set()
                ended.wait()

        threads.append(threading.Thread(target=listen))
        threads[-1].start()
        assert ready.wait(10)
        return port

    yield start
    ended.set()
    for thread in threads:
        thread.join()


def asked(port, folders, marker=".doctor-0123456789abcdef"):
    return list(hosts._of_host(HERE, port, list(map(str, folders)), marker, 0.0))


def test_another_folder_of_the_same_name_is_found(tmp_path, other):
    lines = asked(other(tmp_path), [tmp_path])  # there is no such file in "its" folder
    assert [line.state for line in lines] == [OK, ERROR] and "is another folder there" in str(lines[1])


def test_a_folder_that_was_not_given_there_is_a_warning_and_tells_nothing(tmp_path, other):
    (tmp_path / ".doctor-0123456789abcdef").touch()
    lines = asked(other(), [tmp_path])
    assert [line.state for line in lines] == [OK, WARNING]


def test_only_files_of_a_doctor_are_looked_for(tmp_path, other):
    (tmp_path / "secret").touch()
    with socket.create_connection((HERE, other(tmp_path))) as connection:
        connection.sendall(json.dumps({"marker": "secret", "folders": [str(tmp_path)]}).encode() + b"\n")
        assert json.loads(connection.makefile().readline())["sees"] == {}


def test_who_does_not_listen_has_no_name_or_is_another_program(tmp_path):
    (line,) = asked(free_port(), [])
    assert line.state == WARNING and "run the same line on 127.0.0.1" in str(line)
    (line,) = hosts._of_host("no-such-machine.invalid", 1, [], "", 0.0)
    assert line.state == ERROR and "no machine has this name" in str(line)
    with socket.create_server((HERE, 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].sendall(b"SSH-2.0\n"), daemon=True).start()
        (line,) = asked(server.getsockname()[1], [])
    assert line.state == ERROR and "another program listens" in str(line)


def test_a_port_that_is_taken_is_one_line():
    with socket.create_server(("", 0)) as server:
        (line,) = found(server.getsockname()[1])
    assert line.state == ERROR and "cannot be used here" in str(line)


def test_two_ranks_here_sum_a_tensor(monkeypatch):
    (line,) = hosts.examine_collectives()
    assert (line.state, line.subject) == (OK, "gloo")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nowhere0")
    (line,) = hosts.examine_collectives()
    assert line.state == ERROR and "cannot sum a tensor: " in str(line)
