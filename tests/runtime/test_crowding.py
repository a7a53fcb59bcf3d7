"""How much of its time a thread had a core."""

import time
from pathlib import Path

import pytest

from rntp.runtime import crowding
from rntp.runtime.crowding import Crowding, ran_and_waited


def test_what_linux_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = tmp_path / "schedstat"
    monkeypatch.setattr(crowding, "_SCHEDULED", counts)
    counts.write_text("2000000000 500000000 7\n")
    assert ran_and_waited() == (2.0, 0.5)
    watched = Crowding()
    assert watched.share == 1.0  # nothing has happened yet
    counts.write_text("5000000000 1500000000 9\n")
    assert watched.share == pytest.approx(3 / 4)
    counts.write_text("what is this\n")
    assert ran_and_waited() is None
    assert watched.share is None
    counts.unlink()
    assert Crowding().share is None


@pytest.mark.skipif(ran_and_waited() is None, reason="the system does not count it")
def test_waiting_for_something_else_is_not_waiting_for_a_core() -> None:
    before = ran_and_waited()
    time.sleep(0.5)
    after = ran_and_waited()
    assert before is not None
    assert after is not None
    assert after[1] - before[1] < 0.4  # asleep, a thread could not have run
