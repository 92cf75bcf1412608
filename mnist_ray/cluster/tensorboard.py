"""TensorBoard's file of a training run. Tune writes such files for the trials of a study."""

import tempfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from mnist_ray import storage, tables
from mnist_ray.storage import Place


def write(
    folder: Place, epochs: Sequence[tables.Row], settings: Mapping[str, Any], began: datetime
) -> None:
    """Write the metrics of a run's `epochs` for TensorBoard, with its `settings` as
    hyperparameters. An epoch's time is `began`, when the run first started, plus the seconds of
    training and scoring up to the epoch's end. Pauses before a resumption do not count.

    The file is made anew from all epochs, so an epoch that a resumed run repeats is there once.
    """
    content = _events(epochs, settings, began)
    file = folder / tables.EVENTS
    if not isinstance(file, Path):
        storage.write(file, content)
        return
    # In place, because a TensorBoard that is open holds on to the file and reads what is added.
    # What it has read already is overwritten by as many bytes.
    file.touch()
    with file.open("r+b") as stream:
        stream.write(content)
        stream.truncate()


def _events(epochs: Sequence[tables.Row], settings: Mapping[str, Any], began: datetime) -> bytes:
    # Imported after the first epoch, because the import takes a quarter of a second.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.proto.summary_pb2 import Summary
    from tensorboardX.summary import hparams

    time = began.timestamp()
    events = [
        Event(wall_time=time, summary=summary)
        for summary in hparams(dict(settings), dict.fromkeys(tables.MEASURES, 0))
    ]
    for row in epochs:
        time += row["train_seconds"] + row["score_seconds"]
        known = {name: row[name] for name in tables.MEASURES if row.get(name) is not None}
        values = [Summary.Value(tag=name, simple_value=known[name]) for name in known]
        events.append(Event(wall_time=time, step=row["epoch"], summary=Summary(value=values)))
    with tempfile.TemporaryDirectory() as temporary:
        writer = EventsWriter(f"{temporary}/events")
        for event in events:
            writer.write_event(event)
        writer.close()
        (written,) = Path(temporary).iterdir()
        return written.read_bytes()
