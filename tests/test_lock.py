"""One run at a time in a workdir."""

import errno
import os
import signal
import socket
import subprocess
import sys

import pytest

from jaxcl import lock
from jaxcl.checkpoint import faults

HOLD = """
import sys, time
from jaxcl import lock
from jaxcl.checkpoint import faults
with lock.hold(sys.argv[1], print):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_told_who_has_the_workdir(tmp_path):
    root = tmp_path / "runs" / "x"
    holder = f"process {os.getpid()} on {socket.gethostname()}"
    with lock.hold(root, print):
        with (
            pytest.raises(lock.InUseError, match=r"runs/x is in use: .*choose another") as error,
            lock.hold(root, print),
        ):
            raise AssertionError
        assert error.value.holder == holder
        assert holder in str(error.value)
        assert not faults.may_pass(error.value)  # starting again would meet the same run
        with lock.hold(tmp_path / "runs" / "y", print):
            pass
    with pytest.raises(KeyError), lock.hold(root, print):  # that was refused leaves it free
        raise KeyError
    with lock.hold(root, print):
        pass
    assert (root / lock.NAME).read_text() == ""


def test_a_killed_run_blocks_nothing(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with (
            pytest.raises(lock.InUseError, match=rf"process {process.pid} on "),
            lock.hold(tmp_path, print),
        ):
            raise AssertionError
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert (
        str(process.pid) in (tmp_path / lock.NAME).read_text()
    )  # what it wrote stays, and says nothing
    with lock.hold(tmp_path, print):
        pass


def test_the_other_processes_are_refused_with_process_0(tmp_path, monkeypatch):
    with lock.hold(tmp_path, print):
        monkeypatch.setattr(lock.mesh, "is_main", lambda: False)
        with lock.hold(tmp_path, print):  # process 1 of the same run
            pass
        monkeypatch.setattr(lock.mesh, "agree", lambda refused: True)
        with pytest.raises(OSError, match="process 0 could not have"), lock.hold(tmp_path, print):
            raise AssertionError


def test_where_there_are_no_locks(tmp_path, monkeypatch):
    with lock.hold("gs://bucket/run", print):
        pass

    def refuse(descriptor, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock.fcntl, "flock", refuse)
    said = []
    with lock.hold(tmp_path, said.append):
        pass
    assert said == [
        f"{tmp_path} cannot be locked (No locks available): nothing keeps another run from writing there"
    ]


def test_a_workdir_that_cannot_be_made_is_an_error_of_every_process(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), lock.hold(tmp_path / "file" / "run", print):
        raise AssertionError


def test_a_refused_run_is_told_the_name_of_who_has_just_come(tmp_path, monkeypatch):
    """Who has locked the file a moment ago has not yet written its name over that of a run that was killed."""
    path = tmp_path / lock.NAME
    with lock.hold(tmp_path, print):
        path.write_text("process 1 on before\n")
        monkeypatch.setattr(
            lock.time, "sleep", lambda seconds: path.write_text("process 2 on now\n")
        )
        with pytest.raises(lock.InUseError) as error, lock.hold(tmp_path, print):
            raise AssertionError
    assert error.value.holder == "process 2 on now"


def test_a_full_disk_hides_no_error_and_keeps_no_lock(tmp_path, monkeypatch):
    def full(descriptor, length):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(lock.os, "ftruncate", full)
        with pytest.raises(KeyError), lock.hold(tmp_path, print):
            raise KeyError
    with lock.hold(tmp_path, print):
        pass


def test_locks_of_two_names_are_two_locks(tmp_path):
    with (
        lock.hold(tmp_path, print, "other.lock"),
        lock.hold(tmp_path, print),
        pytest.raises(lock.InUseError),
        lock.hold(tmp_path, print, "other.lock"),
    ):
        raise AssertionError
