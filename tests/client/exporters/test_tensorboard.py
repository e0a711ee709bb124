"""TensorBoard: what was exported, as TensorBoard's own reader gives it back."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from modscope_client.errors import FailedPrecondition
from modscope_client.exporters.tensorboard import TensorBoard
from tests.client.exporters.samples import METRICS, Armed, event, events, metric
from tests.client.golden import compare


def export(folder: Path) -> None:
    sink = TensorBoard(str(folder))
    sink.open(Armed())
    for one in events():
        sink.emit(one)
    sink.metrics(METRICS)
    sink.metrics(METRICS)
    sink.close()


def read(folder: Path) -> Any:
    """All that a folder's files hold; nothing sampled."""
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "histograms": 0})
    return accumulator.Reload()


def scalars(found: Any, tag: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in found.Scalars(tag)]


def test_tags_steps_and_values(tmp_path: Path) -> None:
    export(tmp_path)
    found = read(tmp_path)
    tags = found.Tags()
    lines = [f"{tag} {scalars(found, tag)}" for tag in sorted(tags["scalars"])]
    compare("exporters/tensorboard.txt", "\n".join([*lines, *sorted(tags["histograms"])]) + "\n")
    assert scalars(found, "forward/mlp.w1/mean") == [(0, 0.5)]
    assert found.Scalars("forward/mlp.w1/mean")[0].wall_time == 1e9
    assert scalars(found, "gradient/mlp.w1.weight/norm") == [(8, 0.75)]
    assert scalars(found, "reported/loss")[:3] == [(5, 0.75), (6, 0.5), (7, 0.25)]
    assert found.Scalars("reported/loss")[3].step == 8
    assert math.isnan(found.Scalars("reported/loss")[3].value)
    assert [found.Scalars("reported/val/acc")[0].wall_time] == [1e9 + 11]


def test_a_histogram_has_the_buckets_of_the_event(tmp_path: Path) -> None:
    export(tmp_path)
    (point,) = read(tmp_path).Histograms("forward/_root_/output.logits/histogram")
    drawn = point.histogram_value
    assert (drawn.num, drawn.min, drawn.max) == (2, 0.25, 0.75)
    assert (drawn.sum, drawn.sum_squares) == (1.0, 0.75**2)
    assert (list(drawn.bucket_limit), list(drawn.bucket)) == ([0.5, 1.0], [1.0, 1.0])


def test_a_run_that_begins_anew_has_a_folder_of_its_own(tmp_path: Path) -> None:
    sink = TensorBoard(str(tmp_path))
    sink.open(Armed())
    sink.emit(event(step=0))
    sink.emit(event(step=8))
    sink.open(Armed(step=8))
    sink.emit(event(step=9))
    sink.metrics(METRICS)
    sink.open(Armed(step=0))
    sink.emit(event(step=0))
    sink.metrics(METRICS)
    sink.close()
    # The reader walks down: the folder below is moved out of its sight.
    again = (tmp_path / "restart-1").rename(tmp_path.with_name("again"))
    assert scalars(read(tmp_path), "forward/mlp.w1/mean") == [(0, 0.5), (8, 0.5), (9, 0.5)]
    assert scalars(read(again), "forward/mlp.w1/mean") == [(0, 0.5)]
    assert scalars(read(again), "reported/loss") == [(5, 0.75), (6, 0.5), (7, 0.25)]


def test_metrics_of_a_watch_are_there_without_a_server_that_keeps_them(tmp_path: Path) -> None:
    sink = TensorBoard(str(tmp_path))
    sink.open(Armed())
    sink.emit(metric(0, "loss", 0.5, step=1))
    sink.emit(metric(1, "loss", 0.25, step=2))
    sink.close()
    assert scalars(read(tmp_path), "reported/loss") == [(1, 0.5), (2, 0.25)]


def test_two_exports_into_one_folder_hide_nothing(tmp_path: Path) -> None:
    export(tmp_path)
    export(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorboardX.event_file_writer", None)
    sink = TensorBoard(str(tmp_path / "runs"))
    with pytest.raises(FailedPrecondition, match="tensorboardX is not installed") as caught:
        sink.open(Armed())
    sink.close()
    assert caught.value.hint == "pip install 'modscope[tensorboard]'"
    assert caught.value.reason == "MISSING_EXTRA"
