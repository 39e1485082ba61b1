"""What a command carries over when its processes start anew."""

from __future__ import annotations

import pytest

from itkit.mm.agenda import VARIABLE, Agenda, Failure, Outcome, exit_code


def failure(model, may_retry=True, code=1):
    return Failure("0.1.Tiny", model, 1, "broke", code, may_retry, "trace.txt", "work/0.1.Tiny/" + model)


def test_a_failed_model_is_tried_again_as_often_as_asked_and_then_left_behind():
    agenda = Agenda([Outcome("0.1.Tiny", "first", "trained")])
    for attempt in (1, 2):
        agenda = agenda.after(failure("second"), auto_retry=2)
        assert (agenda.attempts, agenda.start) == ({"0.1.Tiny/second": attempt}, attempt)
        assert agenda.outcome_of("0.1.Tiny", "second") is None
    agenda = agenda.after(failure("second"), auto_retry=2)
    assert agenda.attempts == {}
    assert agenda.outcome_of("0.1.Tiny", "second") == Outcome("0.1.Tiny", "second", "broke", 1, "trace.txt")
    assert exit_code(agenda.outcomes) == 1


def test_a_config_error_is_not_tried_again():
    agenda = Agenda().after(failure("only", may_retry=False, code=2), auto_retry=5)
    assert [o.exit_code for o in agenda.outcomes] == [2]
    assert exit_code(agenda.outcomes) == 2


def test_failure_of_a_model_that_another_process_had_finished_replaces_its_outcome():
    agenda = Agenda([Outcome("0.1.Tiny", "first", "trained")]).after(failure("first"), auto_retry=0)
    assert [o.message for o in agenda.outcomes] == ["broke"]
    assert Agenda([Outcome("0.1.Tiny", "first", "trained")]).after(failure("first"), auto_retry=1).outcomes == []


def test_the_environment_carries_it_once(monkeypatch):
    agenda = Agenda([Outcome("0.1.Tiny", "first", "trained")], {"0.1.Tiny/second": 1}, 3, 12.5)
    monkeypatch.setenv(VARIABLE, agenda.as_text())
    assert Agenda.resume() == agenda
    assert Agenda.resume() == Agenda()


@pytest.mark.parametrize("codes,code", [([], 0), ([0, 0], 0), ([0, 1], 1), ([2, 2], 2), ([2, 0], 1), ([2, 1], 1)])
def test_exit_code_of_a_command(codes, code):
    assert exit_code([Outcome("e", str(i), "", c) for i, c in enumerate(codes)]) == code
