"""Where a run's numbers go, and what happens to files that were damaged meanwhile."""

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

from teukenjax.errors import UserError
from teukenjax.train.metrics import MetricsLog, read_metrics


def events(folder) -> list[Event]:
    """The records of the folder's one file: length, its checksum, content, its checksum."""
    (file,) = folder.iterdir()
    content, found = file.read_bytes(), []
    while content:
        size = int.from_bytes(content[:8], "little")
        record, rest = content[12 : 12 + size], content[12 + size :]
        assert int.from_bytes(rest[:4], "little") == masked_crc32c(record)
        found.append(Event.FromString(record))
        content = rest[4:]
    return found


def test_tensorboard_gets_every_known_number_and_forgets_the_steps_done_again(tmp_path):
    log = MetricsLog(tmp_path, first_step=3)
    log.write({"step": 4, "loss": 2.5, "mfu": None})
    log.close()
    version, start, *points = events(tmp_path / "tensorboard")
    assert version.file_version == "brain.Event:2"
    assert (start.step, start.session_log.status) == (4, SessionLog.START)
    (point,) = [(e.step, e.summary.value[0].tag, e.summary.value[0].simple_value) for e in points]
    assert point == (4, "train/loss", 2.5)


def test_a_resumed_log_drops_the_steps_done_again_and_half_a_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st')
    MetricsLog(tmp_path, first_step=2).close()
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1}, {"step": 2}]


@pytest.mark.parametrize("junk", ["junk", "[1]", '{"loss": 1}', "3"])
def test_a_line_that_is_no_row_is_named_and_left_alone(tmp_path, junk):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{junk}\n{{"step": 3}}\n')
    before = path.read_text()
    with pytest.raises(UserError, match=r"metrics\.jsonl:2: is damaged"):
        MetricsLog(tmp_path, first_step=2)
    assert path.read_text() == before
