"""Real runs on one cluster of two CPUs, of few images and epochs."""

from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from conftest import SECRET
from optuna_journal import assert_like_tables

from mnist_ray import errors, evaluate, tables, terminal, train, tune
from mnist_ray.cluster import resources
from mnist_ray.config import Recipe
from mnist_ray.fields import read_yaml
from mnist_ray.learn import checkpoint, data, engine, process, scoring
from mnist_ray.learn.data import Mnist
from mnist_ray.storage import Place, place

pytestmark = pytest.mark.usefixtures("ray_cluster")

# 101 held-out images: a number that two workers cannot share equally.
SMALL = ["--train-size", "300", "--holdout", "101", "--batch-size", "50"]


def table(folder: Place, name: str = tables.TRIALS) -> list[dict[str, Any]]:
    return tables.read(folder, name).to_pylist()


def assert_checkpoint_scores_what_the_table_says(
    folder: Place, row: dict[str, Any], mnist: Mnist
) -> None:
    saved = checkpoint.load(folder / row["checkpoint"])
    splits = data.split(mnist, saved.recipe.holdout, saved.recipe.train_size)
    assert saved.split_hash == splits.hash == row["split_hash"]
    assert saved.state["epoch"] == row["best_epoch"]
    score = engine.evaluate(scoring.load_model(saved), splits.score)
    assert score.accuracy == row["best_accuracy"]
    assert score.loss == pytest.approx(row["best_loss"], abs=1e-5)


def test_one_worker_ends_with_the_bits_of_plain_python(
    storage: Path, mnist: Mnist, capfd: pytest.CaptureFixture[str]
) -> None:
    # test_in_process.py has the same bits on one of Ray's workers.
    flags = [*SMALL, "--epochs", "3", "--storage", str(storage), "--name", "one", "--in-process"]
    assert errors.run(train.main, flags) == 0
    (row,), epochs = table(storage / "one"), table(storage / "one", tables.EPOCHS)
    shown = capfd.readouterr().out
    assert "13,808" in shown
    assert f"epoch 3/3  loss {epochs[2]['train_loss']:.4f}" in shown
    assert "last checkpoint" in shown

    config = Recipe(train_size=300, holdout=101, batch_size=50, epochs=3)
    splits, alone = data.split(mnist, 101, 300), []
    process.prepare(threads=2)
    network = engine.fit(config, splits, on_epoch=lambda metrics, state: alone.append(metrics))
    for name in ("train_loss", "loss", "accuracy"):
        assert [epoch[name] for epoch in epochs] == [metrics[name] for metrics in alone]
    test = engine.evaluate(network, data.test_part(mnist))
    assert (row["status"], row["test_accuracy"]) == ("ok", test.accuracy)
    assert_checkpoint_scores_what_the_table_says(storage / "one", row, mnist)
    # The last and the best, which may be the same.
    saved = list((storage / "one").glob("checkpoint_*/checkpoint.pt"))
    assert {checkpoint.load(path.parent).state["epoch"] for path in saved} == {
        row["best_epoch"],
        3,
    }
    last = next(path for path in saved if checkpoint.load(path.parent).state["epoch"] == 3)
    state = checkpoint.load(last.parent).state["model"]
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


def test_a_study(storage: Path, mnist: Mnist, capfd: pytest.CaptureFixture[str]) -> None:
    flags = [*SMALL, "--epochs", "2", "--num-trials", "4", "--storage", str(storage)]
    assert errors.run(tune.main, [*flags, "--name", "study"]) == 0
    folder = storage / "study"
    rows = table(folder)
    phases = ["screen"] * 4 + ["search"] * 2 + ["confirm"] * 4 + ["final"] * 2
    assert [(row["trial"], row["phase"], row["status"]) for row in rows] == [
        (number, phase, "ok") for number, phase in enumerate(phases)
    ]
    assert len(table(folder, tables.EPOCHS)) == 4 + 2 * 8
    for row in rows[:10]:
        assert_checkpoint_scores_what_the_table_says(folder, row, mnist)
    # A trial ends with the bits of plain Python, with as many threads.
    config = Recipe(**{name: rows[4][name] for name in Recipe.model_fields})
    process.prepare(threads=1)
    weights = engine.fit(config, data.split(mnist, 101, 300)).state_dict()
    state = checkpoint.load(folder / "trial_00004" / "checkpoint_000001").state["model"]
    assert all(torch.equal(state[name], value) for name, value in weights.items())
    # The test set is scored for the final runs alone, which hold nothing out.
    assert [row["trial"] for row in rows if row["test_accuracy"] is not None] == [10, 11]
    assert {row["holdout"] for row in rows[10:]} == {0}
    confirmed = rows[6:10]
    means = {
        number: sum(row["final_accuracy"] for row in confirmed if row["repeats"] == number)
        for number in (4, 5)
    }
    assert means[rows[10]["repeats"]] == max(means.values())
    best, final = rows[rows[10]["repeats"]], rows[10]
    score = scoring.score_test(folder / final["checkpoint"], mnist)
    assert final["final_accuracy"] == final["test_accuracy"] == score.accuracy
    assert_like_tables(folder, ["lr", "momentum", "dropout"])  # what Optuna finds in its journal
    predictions = table(folder, tables.PREDICTIONS)
    assert set(predictions[0]) == set(tables.PREDICTION_COLUMNS)
    right = [row for row in predictions if row["label"] == row["guess"]]
    assert len(predictions) == 10_000
    assert len(right) == round(score.accuracy * 10_000)
    for row in predictions[:200]:
        shown = None if row["label"] == row["guess"] else mnist.test_images[row["index"]].tobytes()
        assert row["image"] == shown
    assert list(folder.glob("trial_*/events.out.tfevents.*"))
    recipe = Recipe(**read_yaml(folder / "best.yaml"))
    assert (recipe.lr, recipe.momentum, recipe.dropout, recipe.schedule) == (
        *(best[name] for name in ("lr", "momentum", "dropout")),
        "one-cycle",
    )
    shown = capfd.readouterr()
    assert f"checkpoint       {folder / final['checkpoint']}" in shown.out
    assert "--holdout 0" in shown.out.splitlines()[-1]
    assert "WARNING" not in shown.out + shown.err
    assert shown.err == ""

    # The name is taken now, and nothing is overwritten.
    assert errors.run(tune.main, [*flags, "--name", "study"]) == 2
    assert "name study is taken" in capfd.readouterr().err
    assert table(folder) == rows

    # One at a time, the same configurations are sampled, and the same come out on top.
    one = [*flags, "--name", "one", "--max-concurrent", "1", "--confirm", "0"]
    assert errors.run(tune.main, one) == 0
    course = ("phase", "lr", "momentum", "dropout", "seed", "repeats", "final_accuracy")
    alone = table(storage / "one")
    assert [[row[name] for name in course] for row in alone] == [
        [row[name] for name in course] for row in rows[:6]
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of its own packages
def test_without_confirmation_the_best_trial_is_scored_once(storage: Path, mnist: Mnist) -> None:
    flags = [*SMALL, "--epochs", "2", "--num-trials", "3", "--search", "tpe", "--confirm", "0"]
    flags = [*flags, "--scheduler", "median", "--storage", str(storage), "--name", "alone"]
    flags = [*flags, "--max-concurrent", "1"]
    store = f"sqlite:///{storage.parent / 'mlflow.db'}"
    assert errors.run(tune.main, [*flags, "--track", f"mlflow={store}"]) == 0
    rows = table(storage / "alone")
    assert [(row["phase"], row["trial"]) for row in rows] == [("search", n) for n in range(3)]
    best = max(rows, key=lambda row: (row["best_accuracy"], -row["trial"]))
    assert [row["trial"] for row in rows if row["test_accuracy"] is not None] == [best["trial"]]
    score = scoring.score_test(storage / "alone" / best["checkpoint"], mnist)
    assert best["test_accuracy"] == score.accuracy

    # It is done, and has nothing to go on with.
    files = {path: path.stat().st_mtime for path in storage.glob("alone/trial_*/*/checkpoint.pt")}
    again = ["--resume", "--name", "alone", "--storage", str(storage)]
    assert errors.run(tune.main, again) == 0
    assert table(storage / "alone") == rows
    assert files == {path: path.stat().st_mtime for path in files}

    import mlflow  # here, because it takes a second

    client = mlflow.MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("alone")
    logged = client.search_runs([experiment.experiment_id])
    assert sorted(run.data.metrics["accuracy"] for run in logged) == sorted(
        row["final_accuracy"] for row in rows
    )
    assert {float(run.data.params["lr"]) for run in logged} == {row["lr"] for row in rows}


def test_a_trial_that_diverges_is_a_row_like_any_other(storage: Path) -> None:
    space = [
        "--space",
        "lr=choice(10, 0.01)",
        "--search",
        "grid",
        "--scheduler",
        "fifo",
        "--confirm",
        "0",
        "--no-base",
        "--max-concurrent",
        "1",
    ]
    # A weight decay of 1 times a rate of 10 turns each weight into -9 times itself, at every step.
    wild = ["--weight-decay", "1", "--no-batch-norm", "--schedule", "constant", "--epochs", "3"]
    flags = [
        *SMALL,
        "--batch-size",
        "10",
        *space,
        *wild,
        "--storage",
        str(storage),
        "--name",
        "wild",
    ]
    assert errors.run(tune.main, flags) == 0
    rows = table(storage / "wild")
    assert [(row["lr"], row["status"]) for row in rows] == [(10, "diverged"), (0.01, "ok")]
    assert rows[0]["epochs_trained"] < 3


def test_a_study_that_waits_says_why_and_one_in_which_all_diverge_has_no_winner(
    storage: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    take_cpus(2, monkeypatch)
    space = ["--space", "lr=choice(9, 10)", "--search", "grid", "--weight-decay", "1"]
    space = [*space, "--scheduler", "asha", "--no-base", "--max-concurrent", "1"]
    flags = [*SMALL, "--batch-size", "10", "--no-batch-norm", "--schedule", "constant", *space]
    assert errors.run(tune.main, [*flags, "--storage", str(storage), "--name", "all"]) == 1
    shown = capfd.readouterr()
    assert "search    0  waits: 1 CPU needed, 0 of 2 free; something else uses" in shown.out
    assert "no trial has a result (diverged: )" in shown.err
    assert [row["status"] for row in table(storage / "all")] == ["diverged"] * 2


def test_what_is_not_valid_together_is_not_begun(
    storage: Path, mnist: Mnist, capfd: pytest.CaptureFixture[str]
) -> None:
    # Each value is valid by itself, and one combination is not.
    space = ["--space", "batch_size=choice(50, 200)", "--space", "train_size=choice(100, 300)"]
    flags = ["--holdout", "101", "--batch-size", "50", "--epochs", "1", "--search", "grid", *space]
    flags = [*flags, "--no-base", "--try", "lr=0.3 train_size=100 batch_size=50"]
    flags = [*flags, "--confirm-seeds", "1", "--storage", str(storage), "--name", "some"]
    flags = [*flags, "--max-concurrent", "1"]
    assert errors.run(tune.main, flags) == 0
    rows = table(storage / "some")
    assert {row["status"] for row in rows} == {"ok"}
    searched = [row for row in rows if row["phase"] == "search"]
    assert [(row["batch_size"], row["train_size"], row["lr"]) for row in searched] == [
        (50, 100, 0.3),
        (50, 100, 0.01),
        (50, 300, 0.01),
        (200, 300, 0.01),
    ]
    assert [row["origin"] for row in searched] == ["try", *["sampled"] * 3]
    (best,) = [row for row in rows if row["winner"]]
    (final,) = [row for row in rows if row["phase"] == "final"]
    assert final["repeats"] == best["trial"]
    shown = capfd.readouterr().out
    assert "1 of 4 combinations are left out, as they are not valid: batch_size is 200" in shown
    assert f"trained on {best['train_size']} images" in shown
    recipe = read_yaml(storage / "some" / "best.yaml")
    assert [recipe[name] for name in ("train_size", "batch_size", "lr")] == [
        best[name] for name in ("train_size", "batch_size", "lr")
    ]
    for row in rows:
        assert_checkpoint_scores_what_the_table_says(storage / "some", row, mnist)


@pytest.mark.recovery
def test_a_study_that_ended_gets_more_trials(
    storage: Path, mnist: Mnist, capfd: pytest.CaptureFixture[str]
) -> None:
    flags = [*SMALL, "--epochs", "1", "--storage", str(storage)]
    first = ["--num-trials", "2", "--confirm-seeds", "1", "--name", "it"]
    assert errors.run(tune.main, [*flags, *first]) == 0
    before, epochs = table(storage / "it"), table(storage / "it", tables.EPOCHS)
    assert [row["phase"] for row in before] == ["search"] * 2 + ["confirm"] * 2 + ["final"]
    capfd.readouterr()
    more = ["--storage", str(storage), "--name", "it", "--resume", "--confirm-seeds", "2"]
    more = [*more, "--num-trials", "3"]
    assert errors.run(tune.main, [*more, "--confirm", "1"]) == 2
    assert "confirm is 1, but the study has 2, and can only get more" in capfd.readouterr().err
    assert table(storage / "it") == before
    assert errors.run(tune.main, more) == 0
    assert "adds 1 configuration to the 2 before" in capfd.readouterr().out

    after = table(storage / "it")
    known = [{**row, "winner": None} for row in before]
    assert [{**row, "winner": None} for row in after[: len(before)]] == known
    assert table(storage / "it", tables.EPOCHS)[: len(epochs)] == epochs
    assert [row["trial"] for row in after] == list(range(len(after)))
    (winner,) = [row for row in after if row["winner"]]
    confirmed = [(row["repeats"], row["seed"]) for row in after if row["phase"] == "confirm"]
    assert len(set(confirmed)) == len(confirmed)
    assert {seed for number, seed in confirmed if number == winner["trial"]} == {1, 2}
    finals = [row for row in after if row["phase"] == "final"]
    assert [row["seed"] for row in finals if row["repeats"] == winner["trial"]] == [1, 2]
    assert_checkpoint_scores_what_the_table_says(storage / "it", winner, mnist)
    assert read_yaml(storage / "it" / "best.yaml")["lr"] == winner["lr"]
    # What was added is what a study with so many trials from its start would have trained.
    whole = [*flags, "--num-trials", "3", "--confirm", "0", "--name", "whole"]
    assert errors.run(tune.main, whole) == 0
    names = ("lr", "momentum", "dropout", "seed", "origin", "final_loss", "final_accuracy")
    assert [[row[name] for name in names] for row in after if row["phase"] == "search"] == [
        [row[name] for name in names] for row in table(storage / "whole")
    ]
    # Another study starts from its best: the base recipe, and the two that it sampled.
    rest = ["--start-from", "it", "--num-trials", "3", "--confirm", "0", "--name", "next"]
    assert errors.run(tune.main, [*flags, *rest]) == 0
    searched = [row for row in after if row["phase"] == "search"]
    trained = {row["origin"]: row["final_loss"] for row in table(storage / "next")}
    assert trained.pop("base") == searched.pop(0)["final_loss"]
    assert trained == {f"trial {row['trial']} of it": row["final_loss"] for row in searched}


@pytest.mark.parametrize(
    ("command", "flags", "says"),
    [
        (
            train.main,
            ["--num-workers", "3", "--batch-size", "63"],
            "3 workers with 1 CPU each need",
        ),
        (train.main, ["--cpus-per-worker", "3"], "1 worker with 3 CPUs needs 3 CPUs"),
        (train.main, ["--use-gpu"], "1 worker needs 1 GPU and there are 0"),
        (
            tune.main,
            ["--workers-per-trial", "3", "--batch-size", "63"],
            "3 workers with 1 CPU each need 3 CPUs, but there are 2",
        ),
        (tune.main, ["--max-concurrent", "3"], "only 2 trials can run at a time; use at most 2"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_numbers(
    command: Any, flags: list[str], says: str, storage: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert errors.run(command, [*flags, "--storage", str(storage), "--name", "big"]) == 2
    assert says in capfd.readouterr().err
    assert not (storage / "big").exists()


def take_cpus(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take CPUs of the cluster, as another command would, until a command has asked what it waits
    for, which it does after a second."""
    ray.init(logging_level="ERROR")
    taken = ray.util.placement_group([{"CPU": count}], lifetime="detached")
    ray.get(taken.ready(), timeout=60)
    ray.shutdown()
    why_waiting = resources.why_waiting

    def asked(*args: Any) -> str:
        said = why_waiting(*args)
        ray.util.remove_placement_group(taken)
        return said

    monkeypatch.setattr(resources, "PATIENCE", 1)
    monkeypatch.setattr(resources, "why_waiting", asked)


def test_a_trial_whose_workers_wait_says_why(
    storage: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    wait = terminal.StudyDisplay.wait

    def interrupted(*args: Any) -> None:
        wait(*args)
        raise KeyboardInterrupt  # test_recovery.py has trials whose workers train

    monkeypatch.setattr(terminal.StudyDisplay, "wait", interrupted)
    take_cpus(1, monkeypatch)
    flags = [*SMALL, "--epochs", "1", "--workers-per-trial", "2", "--num-trials", "1", "--no-base"]
    flags = [*flags, "--storage", str(storage), "--name", "waits"]
    assert errors.run(tune.main, flags) == 130
    says = "search    0  waits: 2 CPUs needed, 0.999 of 2 free; something else uses"
    assert says in capfd.readouterr().out


def test_runs_in_a_bucket(
    bucket: str,
    mnist: Mnist,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    at = ["--storage", f"{bucket}/runs"]
    study = [*SMALL, "--epochs", "1", "--num-trials", "2", *at, "--name", "study"]
    study = [*study, "--max-concurrent", "1"]
    assert errors.run(tune.main, study) == 0
    folder = place("storage", f"{bucket}/runs/study")
    rows = table(folder)
    assert [row["status"] for row in rows] == ["ok"] * 8  # 2, the 2 again twice, the best twice
    assert_checkpoint_scores_what_the_table_says(folder, rows[0], mnist)
    assert_like_tables(folder, ["lr"], copy=tmp_path / "before")
    assert errors.run(tune.main, ["--resume", "--name", "study", *at]) == 0
    assert table(folder) == rows
    assert_like_tables(folder, ["lr"], copy=tmp_path / "after")

    # Two workers share 101 held-out images, and report what the whole set scores. Before that they
    # wait for cores.
    take_cpus(2, monkeypatch)
    best = ["--config", f"{folder}/best.yaml", "--train-size", "300", "--holdout", "101"]
    assert errors.run(train.main, [*best, "--num-workers", "2", *at, "--name", "best"]) == 0
    (row,) = table(folder.parent / "best")
    assert row["num_workers"] == 2
    assert row["best_accuracy"] * 101 == pytest.approx(round(row["best_accuracy"] * 101))
    assert_checkpoint_scores_what_the_table_says(folder.parent / "best", row, mnist)
    assert row["lr"] == max(rows, key=lambda each: each["phase"] == "final")["lr"]
    assert errors.run(evaluate.main, [f"{bucket}/runs/best"]) == 0
    shown = capfd.readouterr()
    assert "waiting for workers: 2 CPUs needed, 0 of 2 free; something else uses" in shown.out
    assert f"{row['test_accuracy']:.2%}" in shown.out
    assert f"tables           {folder}, " in shown.out
    assert SECRET not in shown.out + shown.err
    for info in folder.parent.files(recursive=True):
        if info.is_file:
            with folder.system.open_input_file(info.path) as file:
                assert SECRET.encode() not in file.read()
