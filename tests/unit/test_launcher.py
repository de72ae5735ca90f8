"""What launch/torchrun.py refuses before it starts anything, and what it starts again."""

import os
import socket

import pytest
import torch.distributed as dist

from rankmixer_dist.errors import UserError
from rankmixer_dist.library_errors import explain, is_lost_rank
from rankmixer_dist.parallel import meeting
from rankmixer_dist.parallel.launcher import launch
from rankmixer_dist.parallel.meeting import meeting_store, require_address
from rankmixer_dist.parallel.stop_guard import GRACE


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ("--nproc_per_node=many", "--nproc_per_node many: "),
        ("--nproc_per_node 0", "--nproc_per_node 0 is below 1"),
        ("--nnodes x", "--nnodes x is not a number of hosts"),
        ("--nnodes 2:1", "--nnodes 2:1 is not a number of hosts"),
        ("--nnodes 1:2:3", "--nnodes 1:2:3 is not a number of hosts"),
        ("--nnodes 2", "give --rdzv_endpoint HOST:PORT"),
        ("--standalone --nnodes 2", "--standalone is for one host, and --nnodes is 2"),
        ("--nnodes 2 --rdzv_endpoint host0:port", "--rdzv_endpoint host0:port is not HOST:PORT"),
        ("--nnodes 2 --rdzv_endpoint host..0:29500", "--rdzv_endpoint host..0:29500: 'host..0' is no name of a host"),
        ("--max_restarts=-1", "--max_restarts -1 is below 0"),
        ("--run_path", "--run_path starts ranks"),
        ("--shutdown_timeout=-5", "is '-5', not a whole number of seconds"),
    ],
)
def test_options_that_make_no_sense_are_named(monkeypatch, options, told):
    monkeypatch.setattr(os, "environ", os.environ.copy())
    with pytest.raises(UserError, match=told):
        launch([*options.split(), "launch/train.py"])


def test_a_time_to_save_that_is_none_is_named(monkeypatch):
    monkeypatch.setenv(GRACE, "4m")
    with pytest.raises(UserError, match=f"{GRACE}, is '4m'"):
        launch(["launch/train.py"])


def nameless(monkeypatch, times):
    """Makes so many questions for an address end as those for a name that nobody knows."""
    asked = []

    def ask(host, *arguments, **options):
        asked.append(host)
        if len(asked) <= times:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return []

    monkeypatch.setattr(socket, "getaddrinfo", ask)
    return asked


def test_a_name_without_an_address_is_told_at_once_and_refused_soon(monkeypatch, capsys):
    asked = nameless(monkeypatch, 1000)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setattr(meeting, "_NAME_S", 0.7)
    with pytest.raises(UserError) as refused:
        launch(["--nnodes", "2", "--rdzv_endpoint", "host0:29400", "launch/train.py"])
    key = "--rdzv_endpoint host0:29400: host0 has no address"
    assert str(refused.value).startswith(f"{key} here (Name or service not known), nor has it had one for 0.7 s; ")
    assert len(asked) == 3
    (told,) = capsys.readouterr().err.splitlines()
    assert told.endswith(f": {key} yet (Name or service not known); it is asked for again and again, for 0.7 s")
    monkeypatch.setattr(os, "environ", os.environ | {"MASTER_ADDR": "host0", "MASTER_PORT": "29400"})
    with pytest.raises(UserError, match="^MASTER_ADDR host0: host0 has no address here "):
        meeting_store(1, 2, 1, 60.0)


def test_a_name_that_appears_late_is_waited_for_and_longest_in_kubernetes(monkeypatch, capsys):
    asked = nameless(monkeypatch, 2)
    monkeypatch.setattr(meeting, "_NAME_S", 0.1)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    require_address("pod-0.service", "--rdzv_endpoint pod-0.service:29500")
    assert len(asked) == 3
    assert capsys.readouterr().err.count("for 600 s") == 1
    nameless(monkeypatch, 1000)
    monkeypatch.setattr(meeting, "_NAME_IN_KUBERNETES_S", 0.1)
    with pytest.raises(dist.DistNetworkError, match="pod-0 has no address here") as unmet:
        require_address("pod-0", "MASTER_ADDR")
    assert is_lost_rank(unmet.value), "a mistake would end the job, though the first pod may come"


@pytest.mark.parametrize("by_torchrun", [False, True])
def test_who_is_missing_and_a_taken_port_are_no_mistakes_under_torchrun(monkeypatch, by_torchrun):
    def told(rank: int, port: int) -> str:
        given = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        monkeypatch.setattr(os, "environ", os.environ | given | ({"TORCHELASTIC_RUN_ID": "1"} if by_torchrun else {}))
        with pytest.raises(dist.DistNetworkError if by_torchrun else UserError) as raised:
            meeting_store(rank, 2, 2, 1.0)
        assert is_lost_rank(raised.value) == by_torchrun
        return explain(raised.value) or str(raised.value)

    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        assert f"port {taken} cannot be listened on" in told(0, taken)
    assert "rank 0 did not come to 127.0.0.1:" in told(1, taken)
    assert "rank 1 of 2 did not come" in told(0, taken)
