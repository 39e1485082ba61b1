"""What processes of a group answer together; three of them, forked off one program that has imported everything."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist

from itkit.errors import DataError, LostContact
from itkit.mm.group import agree, agree_on_place, describe_loss, is_known_to_all, is_lost_contact, is_several, share

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
from shared_store import SharedStore

PROGRAM = """
import json, os, sys, threading, time
from pathlib import Path

os.environ.update(MASTER_ADDR="localhost", MASTER_PORT=sys.argv[1], WORLD_SIZE="3", CUDA_VISIBLE_DEVICES="")
import torch.distributed as dist
from itkit.errors import DataError
from itkit.mm import group

FOLDER = Path(sys.argv[2])


def caught(action):
    try:
        return ["returned", action()]
    except Exception as error:
        cause = type(error.__cause__).__name__
        return [type(error).__name__, str(error), getattr(error, "path", None), group.is_known_to_all(error), cause]


def beat(board):
    while True:
        board.beat()
        time.sleep(0.2)


class Odd(Exception):
    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def fail_on(rank, error):
    if dist.get_rank() == rank:
        raise error
    return f"fine on {dist.get_rank()}"


def work(rank):
    board = group.join(60)
    found = {
        "several": group.is_several(),
        "share": caught(lambda: group.share(lambda: f"from {dist.get_rank()}")),
        "share fails": caught(lambda: group.share(lambda: fail_on(0, DataError("broken", "a.mha")))),
        "agree": caught(lambda: group.agree(lambda: f"from {dist.get_rank()}")),
        "agree fails": caught(lambda: group.agree(lambda: fail_on(1, DataError("broken", "a.mha")))),
        "agree fails oddly": caught(lambda: group.agree(lambda: fail_on(2, Odd(1, 2)))),
        "afterwards": caught(lambda: group.share(lambda: "the group is sound")),
    }
    board.sign("ready")
    while board.signed("ready") is None:
        time.sleep(0.01)
    if rank == 2:
        (FOLDER / "2.json").write_text(json.dumps(found))
        os._exit(0)
    threading.Thread(target=beat, args=(board,), daemon=True).start()
    try:
        group.agree(lambda: 0)
    except Exception as error:
        found["lost"] = [group.is_lost_contact(error), group.describe_loss(error, board)]
        (FOLDER / f"{rank}.json").write_text(json.dumps(found))
        while not all((FOLDER / f"{n}.json").exists() for n in (0, 1)):
            time.sleep(0.05)
    os._exit(0)


children = []
for rank in range(3):
    child = os.fork()
    if child == 0:
        os.environ["RANK"] = str(rank)
        try:
            work(rank)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    children.append(child)
codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
sys.exit(max(codes))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("group")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-c", PROGRAM, str(port), str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return [json.loads(Path(folder / f"{rank}.json").read_text()) for rank in range(3)]


def test_the_first_process_answers_for_all_and_fails_for_all(answers):
    assert all(a["several"] for a in answers)
    assert [a["share"] for a in answers] == [["returned", "from 0"]] * 3
    own, other, third = (a["share fails"] for a in answers)
    assert own == ["DataError", "a.mha: broken", "a.mha", True, "NoneType"]
    assert other == third == ["DataError", "a.mha: broken", "a.mha", True, "OtherTraceback"]


def test_all_answer_and_an_error_of_one_is_raised_in_all(answers):
    assert [a["agree"] for a in answers] == [["returned", f"from {rank}"] for rank in range(3)]
    assert {tuple(a["agree fails"][:4]) for a in answers} == {("DataError", "a.mha: broken", "a.mha", True)}
    assert [a["agree fails oddly"][0] for a in answers] == ["TrainingError", "TrainingError", "Odd"]
    assert answers[0]["agree fails oddly"][1] == "Odd: 1 and 2"
    assert [a["afterwards"] for a in answers] == [["returned", "the group is sound"]] * 3


def test_a_process_that_is_gone_is_named(answers):
    for answer in answers[:2]:
        is_loss, text = answer["lost"]
        assert is_loss
        assert "lost contact with process 2 of 3, without a sign of life" in text


def places(store, ranks, world, timeout_s):
    """Let processes of these ranks ask at once; return rank -> place, or what was raised."""
    found = {}

    def ask(rank):
        try:
            found[rank] = agree_on_place(store, rank, world, timedelta(seconds=timeout_s))
        except LostContact as error:
            found[rank] = error

    threads = [threading.Thread(target=ask, args=(rank,)) for rank in ranks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def test_each_start_meets_at_a_place_of_its_own_whatever_starts_before_it_left_in_the_store():
    store, world, seen = SharedStore(), 3, set()
    for those_that_come in ((0, 1, 2), (1, 2), (0, 1, 2), (0, 1), (2, 1, 0), (0,), (1, 0, 2)):
        is_whole = len(those_that_come) == world
        found = places(store, those_that_come, world, 60 if is_whole else 0.3)
        if is_whole:
            (place,) = set(found.values())
            assert place not in seen
            seen.add(place)
        else:
            lost = [answer for answer in found.values() if isinstance(answer, LostContact)]
            assert lost
            assert "the 3 processes did not find each other: not all came within 0:00:00.3" in str(lost[0])
    assert places(store, [0], 1, 60)[0] not in seen


def test_one_process_alone_answers_for_itself():
    assert not is_several()
    assert share(lambda: 1) == agree(lambda: 1) == 1
    with pytest.raises(DataError, match="broken") as error:
        share(lambda: (_ for _ in ()).throw(DataError("broken")))
    assert not is_known_to_all(error.value)


@pytest.mark.parametrize(
    "error,is_loss",
    [
        (RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer"), True),
        (dist.DistNetworkError("recvValue failed"), True),
        (dist.DistBackendError("NCCL error"), True),
        (RuntimeError("the model broke"), False),
        (LostContact("said already"), False),
        (ConnectionResetError("a data base"), False),
        (None, False),
    ],
)
def test_what_is_a_lost_contact(error, is_loss):
    assert is_lost_contact(error) == is_loss
    if error is not None:
        wrapped = ValueError("while training")
        wrapped.__cause__ = error
        assert is_lost_contact(wrapped) == is_loss


def test_a_store_that_is_gone_is_a_loss_too():
    class Gone:
        def beats(self):
            raise dist.DistNetworkError("gone")

    text = describe_loss(RuntimeError("gloo: Timed out waiting"), Gone())
    assert text.startswith("lost contact with the process that the others meet at")
    assert "an operation timed out" in text
