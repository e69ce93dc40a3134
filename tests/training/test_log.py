import signal
from pathlib import Path

import pytest

from spherecf.errors import StorageError
from spherecf.training import loop
from spherecf.training.loop import RunLog, stop_requested


def test_a_history_that_cannot_be_written_raises_storage_error(tmp_path: Path) -> None:
    with RunLog(tmp_path, False, [{"loss": 1.0}]) as log:
        log.epoch({"loss": 0.5}, {}, 2)
        assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 2
        (tmp_path / "history.jsonl").unlink()
        (tmp_path / "history.jsonl").mkdir()
        with pytest.raises(StorageError, match="could not be written"):
            log.epoch({"loss": 0.4}, {}, 3)
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        RunLog(tmp_path / "file" / "below", False, [])


def test_only_a_signal_seconds_after_the_first_interrupts_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with stop_requested() as stop:
        assert not stop.is_set()
        for number in (signal.SIGINT, signal.SIGTERM):  # torchrun forwards the signal of the terminal
            signal.raise_signal(number)
        assert stop.is_set()
        monkeypatch.setattr(loop, "_SAME_REQUEST", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
