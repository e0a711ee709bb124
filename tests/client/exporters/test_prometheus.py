"""Prometheus: what a scrape over HTTP gets, read by prometheus_client's own parser."""

from __future__ import annotations

import json
import math
import re
import shutil
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from modscope import __version__
from modscope_client.errors import FailedPrecondition, InvalidArgument
from modscope_client.exporters import series
from modscope_client.exporters.families import FAMILIES
from modscope_client.exporters.prometheus import Prometheus
from modscope_client.types import ValueInfo
from tests.client.exporters.samples import METRICS, Armed, event, events, metric, stats
from tests.client.golden import compare
from tests.end_to_end.serving import until

ROOT = Path(__file__).parents[3]


@contextmanager
def exporting(target: str = "127.0.0.1:0") -> Iterator[Prometheus]:
    sink = Prometheus(target)
    try:
        sink.open(Armed())
        yield sink
    finally:
        sink.close()


def scrape(sink: Prometheus) -> str:
    # No proxy: the address is this host's own.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with closing(opener.open(sink.place, timeout=30)) as answer:
        assert answer.headers["Content-Type"].startswith("text/plain")
        return str(answer.read().decode())


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Name and label values, in the order of the docs -> amount."""
    order = ("model", "path", "hook", "role", "key", "name", "version")
    return {
        (sample.name, *(sample.labels[label] for label in order if label in sample.labels)): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_names_labels_and_values() -> None:
    with exporting() as sink:
        for one in events():
            sink.emit(one)
        sink.metrics(METRICS)
        text = scrape(sink)
        compare("exporters/prometheus.txt", text.replace(__version__, "VERSION"))
        found = samples(text)
        value = ("gpt", "mlp.w1", "forward", "output", "")
        assert found[("modscope_value_mean", *value)] == 0.5
        assert found[("modscope_value_elements", *value)] == 4
        assert found["modscope_value_mean", "gpt", "mlp.w1", "backward", "grad_input", ""] == math.inf
        assert found[("modscope_event_timestamp_seconds", *value[:3])] == 1e9 + 4
        assert found[("modscope_events_total", *value[:3])] == 3
        assert (
            found[("modscope_nan_elements_total", *value)]
            == found[("modscope_inf_elements_total", *value)]
            == 3
        )
        assert found["modscope_events_dropped_total",] == 2
        assert found["modscope_parameter_norm", "gpt", "mlp.w1.weight"] == 0.75
        assert found["modscope_gradient_norm", "gpt", "mlp.w1.weight"] == 0.75
        assert found["modscope_nan_elements_total", "gpt", "mlp.w1.weight", "gradient", "gradient", ""] == 1
        assert found["modscope_events_total", "gpt", "mlp.w1.bias", "gradient"] == 1
        assert math.isnan(found["modscope_reported", "gpt", "loss"])
        assert found["modscope_reported", "gpt", "val/acc"] == 0.75
        assert found["modscope_up",] == 1


def test_each_number_has_one_name() -> None:
    with exporting() as sink:
        for one in events():
            sink.emit(one)
        found = samples(scrape(sink))
    for name, *labels in found:
        if name.startswith("modscope_value_"):
            assert not {"parameter", "gradient", "metric"} & set(labels)
        if name.endswith(("_nan_elements_total", "_inf_elements_total")):
            assert "metric" not in labels


def test_the_newer_of_what_events_and_the_server_tell_of_a_metric_is_told() -> None:
    with exporting() as sink:
        sink.emit(metric(0, "loss", 0.5, step=6))
        assert samples(scrape(sink))["modscope_reported", "gpt", "loss"] == 0.5
        sink.metrics(METRICS)
        assert samples(scrape(sink))["modscope_reported", "gpt", "loss"] == 0.25
        sink.emit(metric(1, "loss", 0.125, step=8))
        assert samples(scrape(sink))["modscope_reported", "gpt", "loss"] == 0.125


def test_a_statistic_that_is_gone_is_not_told_any_more() -> None:
    with exporting() as sink:
        sink.emit(event())
        assert any(name[0] == "modscope_value_mean" for name in samples(scrape(sink)))
        sink.emit(event(1, values=[ValueInfo("output", "", (4,), "float32", stats(mean=None))]))
        assert not any(name[0] == "modscope_value_mean" for name in samples(scrape(sink)))


def test_names_follow_the_rules() -> None:
    for family in FAMILIES:
        assert re.fullmatch(r"modscope_[a-z]+(_[a-z]+)*", family.name)
        assert not family.name.endswith("_total")
        assert family.help.endswith(".")
        assert "step" not in family.labels and "call" not in family.labels


def test_labels_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "MOST_SERIES", 3)
    with exporting() as sink:
        for index in range(5):
            sink.emit(event(index, path=f"layer.{index}"))
        sink.emit(event(5, path="layer.0"))
        found = samples(scrape(sink))
    assert sum(name == "modscope_value_mean" for name, *_ in found) == 3
    assert sum(name == "modscope_events_total" for name, *_ in found) == 3
    assert found["modscope_series_over_limit_total",] == 2
    assert found["modscope_event_step", "gpt", "layer.0", "forward"] == 5


def test_a_closed_one_serves_no_more_and_opening_twice_serves_once() -> None:
    with exporting() as sink:
        place = sink.place
        sink.open(Armed(step=3))
        assert sink.place == place
        scrape(sink)
    with pytest.raises(urllib.error.URLError):
        scrape(sink)


def test_a_busy_port_and_a_wrong_one() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        with (
            pytest.raises(InvalidArgument, match="cannot serve on"),
            exporting(f"127.0.0.1:{taken.getsockname()[1]}"),
        ):
            pass
    for target in ("localhost", "unix:/metrics", "127.0.0.1:http"):
        with pytest.raises(InvalidArgument):
            Prometheus(target)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(FailedPrecondition, match="prometheus_client is not installed") as caught, exporting():
        pass
    assert caught.value.hint == "pip install 'modscope[prometheus]'"


def test_the_dashboard_asks_for_nothing_that_is_not_exported() -> None:
    dashboard = json.loads((ROOT / "examples/grafana/modscope.json").read_text())
    queries = " ".join(expressions(dashboard))
    asked = set(re.findall(r"\bmodscope_\w+", queries))
    told = {f.name if f.kind == "gauge" else f"{f.name}_total" for f in FAMILIES}
    assert asked and asked <= told
    labels = set(re.findall(r"(\w+)\s*=~?\s*\"", queries)) | set(
        re.findall(r"{{(\w+)}}", json.dumps(dashboard))
    )
    assert labels <= {label for family in FAMILIES for label in family.labels}


def expressions(part: Any) -> Iterator[str]:
    """Every query of a dashboard."""
    if isinstance(part, dict):
        yield from (
            value for key, value in part.items() if key in ("expr", "query") and isinstance(value, str)
        )
    for below in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from expressions(below)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="no promtool is installed")
def test_promtool_finds_nothing_to_mend() -> None:
    with exporting() as sink:
        for one in events():
            sink.emit(one)
        sink.metrics(METRICS)
        text = scrape(sink)
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True)
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no Prometheus server is installed")
def test_a_real_server_scrapes_it(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with exporting() as sink:
        sink.emit(event())
        target = sink.place.removeprefix("http://").removesuffix("/metrics")
        (tmp_path / "prometheus.yml").write_text(
            "global: {scrape_interval: 1s}\n"
            f"scrape_configs: [{{job_name: modscope, static_configs: [{{targets: ['{target}']}}]}}]\n"
        )
        command = [
            "prometheus", f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
            f"--web.listen-address=127.0.0.1:{port}",
        ]  # fmt: skip
        with (tmp_path / "log").open("w") as log, subprocess.Popen(command, stderr=log) as server:
            try:
                until(lambda: asked(port) == ["0.5"], "the server has scraped the mean")
            finally:
                server.terminate()


def asked(port: int) -> list[str]:
    """What a Prometheus server answers to the query of all means; nothing where it does not answer yet."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with closing(
            opener.open(f"http://127.0.0.1:{port}/api/v1/query?query=modscope_value_mean", timeout=5)
        ) as answer:
            return [one["value"][1] for one in json.load(answer)["data"]["result"]]
    except OSError:
        return []
