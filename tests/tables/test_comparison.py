"""Reports of several runs: what can be compared is drawn together, and the rest is said."""

from pathlib import Path
from typing import Any

import pytest
from test_report import trial, write

from mnist_ray.tables import comparison, report


def a_study(folder: Path, high: float, **more: Any) -> Path:
    searched = [
        trial(
            *(i, "search", [0.9, high - i / 100]),
            **{"lr": 0.01 + i / 100, "winner": i == 1, "status": "ok", "split_hash": "h", **more},
        )
        for i in range(3)
    ]
    again = {"repeats": 1, "seed": 1, "winner": False, "split_hash": "h", **more}
    confirmed = [trial(3, "confirm", [0.9, 0.95, high], **again)]
    final = [trial(4, "final", [0.9, 0.95, 0.993], **again)]
    return write(folder, *searched, *confirmed, *final)


def a_training(folder: Path, accuracies: list[float], **more: Any) -> Path:
    return write(folder, trial(0, None, accuracies, **{"split_hash": "h", **more}))


def runs(*folders: Path) -> list[comparison.Run]:
    return [report._read(folder, folder.name) for folder in folders]


def shown(*folders: Path) -> str:
    return "".join(comparison.render(runs(*folders)))


def test_runs_on_the_same_images_share_their_figures(tmp_path: Path) -> None:
    folders = [
        a_study(tmp_path / "one", 0.97),
        a_study(tmp_path / "two", 0.98),
        a_training(tmp_path / "three", [0.9, 0.97, 0.975], test_accuracy=0.9731),
    ]
    together = runs(*folders)
    for column in ("accuracy", "loss"):
        figure = comparison.curves(together, column)
        assert figure is not None
        lines = {line.name: [value for (value,) in line.customdata] for line in figure.data}
        high = {"one": 0.96, "two": 0.97}  # of the winner, trial 1, not of the most accurate
        expected = {name: [0.9, top] for name, top in high.items()} | {"three": [0.9, 0.97, 0.975]}
        if column == "loss":
            expected = {name: [1 - value for value in each] for name, each in expected.items()}
        assert lines == expected
    cost = comparison.best_by_cost(together[:2])
    assert cost is not None
    assert [list(line.x) for line in cost.data] == [[2, 4, 6]] * 2
    assert [[best for _, best in line.customdata] for line in cost.data] == [[0.97] * 3, [0.98] * 3]
    styles = {(line.line.color, line.line.dash) for line in cost.data}
    assert len(styles) == 2
    page = shown(*folders)
    assert "Not all of them can be compared" not in page
    for text in ("3 runs compared", "97.00% (n = 1)", "99.30% (n = 1)", "97.31%"):
        assert text.replace("%", " %") in page or text in page
    assert page.count("<td>one</td>") == page.count("<td>three</td>") == 1


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ({"holdout": 200, "split_hash": "i"}, "other: scored on 200 held-out images"),
        ({"holdout": 0, "split_hash": "i"}, "other: scored on the test images"),
        ({"split_hash": "of other data"}, "other: scored on 100 held-out images, of data 2"),
    ],
)
def test_runs_on_other_images_are_not_drawn_together(
    other: dict[str, Any], says: str, tmp_path: Path
) -> None:
    one = a_training(tmp_path / "one", [0.9, 0.97])
    two = a_training(tmp_path / "other", [0.9, 0.98], **other)
    page = shown(one, two)
    assert "Not all of them can be compared" in page
    assert says in page
    assert "epoch by epoch" not in page
    assert "<table" not in page
    # A third run like the first one is drawn with it, and without the other.
    page = shown(one, two, a_training(tmp_path / "three", [0.9, 0.96], epochs=2))
    assert "one, three: scored on 100 held-out images" in page
    assert page.count("<td>one</td>") == page.count("<td>three</td>") == 1
    assert "<td>other</td>" not in page


def test_another_training_set_is_compared(tmp_path: Path) -> None:
    one = a_training(tmp_path / "one", [0.9, 0.97])
    two = a_training(tmp_path / "two", [0.9, 0.98], train_size=500, split_hash="fewer")
    page = shown(one, two)
    assert "Not all" not in page
    assert "epoch by epoch" in page


def test_a_single_run_is_compared_with_nothing(tmp_path: Path) -> None:
    folder = a_training(tmp_path / "one", [0.9, 0.97])
    assert shown(folder) == ""
    assert "compared" not in report.render([folder]).split("</script>")[1][:500]


def test_runs_without_a_result_make_a_page(tmp_path: Path) -> None:
    failed = write(tmp_path / "a", trial(0, "search", [], status="failed", error="gone"))
    begun = write(tmp_path / "b", trial(0, None, [], status="running"))
    page = report.render([failed, begun])
    assert "2 runs compared" in page
    assert "<b>" not in page


def test_runs_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    for home in ("x", "y"):
        (tmp_path / home).mkdir()
        a_training(tmp_path / home / "run", [0.9, 0.97])
    page = report.render([tmp_path / "x" / "run", tmp_path / "y" / "run"])
    assert "<title>x/run, y/run</title>" in page
    assert "<h1>Run x/run</h1>" in page
