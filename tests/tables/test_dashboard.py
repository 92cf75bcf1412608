"""Optuna's dashboard, in a real browser, on the journal of a study that goes on."""

import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from browser import chromium, look
from test_journal import plan_of, steps

from mnist_ray import tables
from mnist_ray.cluster.connect import free_port

pytestmark = pytest.mark.browser


@contextmanager
def dashboard(file: Path) -> Iterator[str]:
    """Run `optuna-dashboard FILE`, and give its address."""
    port = free_port()
    command = [str(Path(sys.executable).with_name("optuna-dashboard")), str(file)]
    server = subprocess.Popen(
        [*command, "--port", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(300):
            try:
                urlopen(f"http://127.0.0.1:{port}/api/studies").close()
                break
            except URLError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/dashboard"
    finally:
        server.terminate()
        server.wait(20)


def words(html: str) -> str:
    """Return the text of a page, after its head."""
    body = re.sub(r"<(style|script).*?</\1>", " ", html, flags=re.DOTALL)
    return " ".join(re.sub("<[^>]*>", " ", body).split())


def test_the_dashboard_follows_a_study(tmp_path: Path) -> None:
    chromium()  # before anything starts
    file = tmp_path / "a" / tables.JOURNAL
    file.parent.mkdir()
    plan, epochs = plan_of(), tables.Epochs()
    journal = tables.study_journal(file.parent, plan)
    study = steps(plan, epochs)
    for _ in range(10):
        next(study)
        journal.update(plan.rows, epochs)
    running = set(epochs) - set(plan.rows)
    assert plan.rows
    assert running
    with dashboard(file) as address:
        first = words(look(f"{address}/studies/1/trials", tmp_path / "browser"))
        assert f"{len(epochs)} Trials" in first
        assert first.count(" Running") == len(running)
        assert "a screen (id=1)" in first
        for shown in ("phase screen", "origin base", "seed 0", "lr 0.5", "weight_decay 0.0"):
            assert shown in first
        for _ in study:
            journal.update(plan.rows, epochs)
        journal.close(plan.winner())
        for _ in range(10):  # the dashboard keeps what it has read for some seconds
            then = words(look(f"{address}/studies/1/trials", tmp_path / "browser"))
            if "9 Trials" in then:
                break
            time.sleep(2)
        assert "9 Trials" in then
        assert " Running" not in then
        # Trial 0 of this phase is shown in full.
        assert f"Value {plan.rows[0]['best_accuracy']}" in then
        found = words(look(f"{address}/studies/0", tmp_path / "browser"))
        assert f"winner {plan.winner()}" in found
        both = words(look(f"{address}/compare-studies?ids=0,1", tmp_path / "browser"))
        assert "Best Value of a Best Value of a screen" in both
