from pathlib import Path

import pytest

from spherecf.errors import StorageError
from spherecf.training.loop import RunLog


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
