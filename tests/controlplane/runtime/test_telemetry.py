"""Counters and their text form."""

from controlplane.runtime.telemetry import Counters, prometheus_text


def test_counters_add_by_label():
    """Each set of labels is counted by itself, in whatever order the labels are named."""
    counters = Counters()
    counters.add("drops_total", 2, reason="a", direction="ingress")
    counters.add("drops_total", direction="ingress", reason="a")
    counters.add("drops_total", reason="b", direction="ingress")
    assert counters.value("drops_total", reason="a", direction="ingress") == 3
    assert len(counters.samples()) == 2


def test_text_has_type_and_escaped_labels():
    """A name ending in _total is a counter, others are gauges; quotes in labels are escaped."""
    text = prometheus_text([("x_total", (("why", 'say "no"'),), 3), ("y", (), 0.5)], {"y": "A gauge."})
    assert '# TYPE meshlog_x_total counter\nmeshlog_x_total{why="say \\"no\\""} 3\n' in text
    assert "# HELP meshlog_y A gauge.\n# TYPE meshlog_y gauge\nmeshlog_y 0.5\n" in text
