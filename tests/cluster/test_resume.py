"""What an interrupted run left, and what may be gone on with."""

import fcntl
from pathlib import Path

import pytest
import yaml

from mnist_ray import errors, storage, tables, train, tune
from mnist_ray.cluster import resume
from mnist_ray.config import PerWorker, Recipe, Resources, RunConfig, TuneConfig
from mnist_ray.errors import UserError
from mnist_ray.learn import checkpoint
from mnist_ray.learn.checkpoint import Checkpoint
from mnist_ray.learn.model import build
from mnist_ray.storage import Place
from mnist_ray.tables import changes, run_folder
from mnist_ray.terminal import command, flags

CONFIG = Recipe(epochs=4, holdout=100)


def save(folder: Path, epoch: int) -> None:
    epochs = [
        {"epoch": each, "train_loss": each / 7, "accuracy": 0.5 + each / 10}
        for each in range(1, epoch + 1)
    ]
    state = {"model": build(CONFIG).state_dict(), "optimizer": {}, "epoch": epoch}
    checkpoint.save(folder, Checkpoint(state, CONFIG, epochs, "0"))


def test_a_trial_goes_on_from_its_last_whole_checkpoint(tmp_path: Path) -> None:
    save(tmp_path / "trial_00002" / "checkpoint_000000", 1)
    save(tmp_path / "trial_00002" / "checkpoint_000001", 2)
    save(tmp_path / "trial_00002-1" / "checkpoint_000000", 3)  # when it was resumed before
    torn = tmp_path / "trial_00002-1" / "checkpoint_000001"
    save(torn, 4)
    content = (torn / checkpoint.FILE).read_bytes()
    (torn / checkpoint.FILE).write_bytes(content[: len(content) // 2])
    save(tmp_path / "trial_00001" / "checkpoint_000000", 4)
    (tmp_path / "trial_notes.txt").touch()
    (tmp_path / "trial_00003" / "checkpoint_000000").mkdir(parents=True)
    save(tmp_path / "workers" / "trial_00004" / "checkpoint_1", 2)

    begun = resume.begun(tmp_path, ended={1})
    assert list(begun) == [2, 4]
    assert [row["epoch"] for row in begun[2].epochs] == [1, 2, 3]
    assert [row["checkpoint"] for row in begun[2].epochs] == [
        "trial_00002/checkpoint_000000",
        "trial_00002/checkpoint_000001",
        "trial_00002-1/checkpoint_000000",
    ]
    assert {(row["run"], row["trial"]) for row in begun[2].epochs} == {(tmp_path.name, 2)}
    assert [row["checkpoint"] for row in begun[4].epochs] == [
        None,
        "workers/trial_00004/checkpoint_1",
    ]


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("trial_00000", 0),
        ("trial_00012-2", 12),
        ("trial_99999", 99_999),
        ("trial_100000", 100_000),
        ("trial_100000-13", 100_000),
        *[(name, None) for name in ("trial_notes", "trial_12", "trial_00012_old", "trial_")],
        *[(name, None) for name in ("trial_000012", "trial_00012-", "trial_00012-a")],
        *[(name, None) for name in ("my_trial_00012", "trial_00012-2-3", "trial_00012.bak")],
    ],
)
def test_a_folders_name_tells_its_trial(name: str, number: int | None) -> None:
    assert run_folder.trial_number(name) == number


def test_trials_of_five_and_of_six_digits_are_told_apart(home: Place) -> None:
    numbers = (1, 10_000, 99_999, 100_000, 1_000_000)
    for number in numbers:
        assert run_folder.trial_number(run_folder.trial_name(number)) == number
    for name in (
        *map(run_folder.trial_name, numbers),
        *("trial_10000-1", "trial_10000-3", "trial_100000-1", "trial_10000_notes", "trial_notes"),
    ):
        storage.make(home / name)
        storage.write(home / name / "file", b"")
    storage.make(home / run_folder.WORKERS / "trial_10000")
    storage.write(home / run_folder.WORKERS / "trial_10000" / "file", b"")
    storage.make(home / run_folder.WORKERS / "trial_100000")
    storage.write(home / run_folder.WORKERS / "trial_100000" / "file", b"")
    storage.write(home / "trial_00001-1", b"")  # a file
    found = {
        number: sorted(
            storage.relative(path, home) for path in run_folder.trial_folders(home, number)
        )
        for number in numbers
    }
    assert found == {
        1: ["trial_00001"],
        10_000: ["trial_10000", "trial_10000-1", "trial_10000-3", "workers/trial_10000"],
        99_999: ["trial_99999"],
        100_000: ["trial_100000", "trial_100000-1", "workers/trial_100000"],
        1_000_000: ["trial_1000000"],
    }
    assert run_folder.trial_numbers(home) == set(numbers)
    # What is there is never filled by another trial of Tune's.
    assert run_folder.new_trial_folder(home, 10_000) == "trial_10000-2"
    assert run_folder.new_trial_folder(home, 100_000) == "trial_100000-2"
    assert run_folder.new_trial_folder(home, 1) == "trial_00001-2"
    assert run_folder.new_trial_folder(home, 2) == "trial_00002"


def test_trial_100000_goes_on_as_itself(tmp_path: Path) -> None:
    save(tmp_path / "trial_100000" / "checkpoint_000000", 1)
    save(tmp_path / "trial_10001" / "checkpoint_000000", 2)
    save(tmp_path / "trial_notes" / "checkpoint_000000", 3)
    begun = resume.begun(tmp_path, ended={10_000})
    assert {number: len(each.epochs) for number, each in begun.items()} == {10_001: 2, 100_000: 1}


def test_what_somebody_put_beside_the_checkpoints_is_none_of_them(tmp_path: Path) -> None:
    ours = ["checkpoint_000000", "checkpoint_2026-11-26_10-00-00.123456"]
    for name in (*ours, "checkpoint_best", "checkpoint_"):
        (tmp_path / name).mkdir()
    assert sorted(path.name for path in run_folder.checkpoints(tmp_path)) == ours


def test_the_epochs_of_trials_that_did_not_end_are_left_to_their_checkpoints(
    tmp_path: Path,
) -> None:
    assert resume.ended(tmp_path) == ([], {})
    epochs = [{"run": "a", "trial": trial, "epoch": 1, "train_loss": 0.5} for trial in (0, 1)]
    row = tables.trial_row(CONFIG.model_dump(), [], run="a", trial=0, status="failed")
    tables.write(tmp_path, [row], epochs)
    rows, by_trial = resume.ended(tmp_path)
    assert [row["trial"] for row in rows] == [0]
    assert {trial: len(rows) for trial, rows in by_trial.items()} == {0: 1}
    assert rows[0]["lr"] == CONFIG.lr


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """A study's folder, as it is left before its first trial ended."""
    base = {**Recipe(holdout=100, epochs=2).model_dump(), **PerWorker().model_dump()}
    with run_folder.locked(tmp_path / "old", "tune", {**base, **TuneConfig().model_dump()}):
        pass
    return tmp_path


@pytest.mark.parametrize(
    ("command", "line", "says"),
    [
        (tune.main, "--name old", "name old is taken"),
        (tune.main, "--name old", "or go on with it: --resume"),
        (tune.main, "--resume", "resume needs the name of the run to resume; add --name"),
        (tune.main, "--resume --name new", "name new cannot be resumed"),
        (train.main, "--resume --name old", "old holds no train.yaml"),
        (tune.main, "--resume --name old --lr 0.5", "lr is 0.5, but old began with 0.01"),
        (
            tune.main,
            "--resume --name old --space lr=choice(1)",
            "space is {'lr': 'choice(1)'}, but",
        ),
        (tune.main, "--resume --name old --scheduler asha", "but old began with one-rung"),
    ],
)
def test_what_cannot_be_gone_on_with(
    command: object, line: str, says: str, begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (begun / "old" / "tune.yaml").read_text()
    assert errors.run(command, [*line.split(), "--storage", str(begun)]) == 2
    assert says in capsys.readouterr().err
    assert [path.name for path in begun.rglob("*")] == ["old", "tune.yaml"]
    assert (begun / "old" / "tune.yaml").read_text() == before


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ("--max-concurrent 2", "max_concurrent", 2),
        ("--max-concurrent 8", "max_concurrent", 8),
        ("--cpus-per-worker 2", "cpus_per_worker", 2),
        ("--use-gpu", "use_gpu", True),
        ("--no-use-gpu", "use_gpu", False),
        ("--time-budget 1m", "time_budget", 60),
        ("--num-trials 7", "num_trials", 7),
        ("--keep 3", "keep", 3),
        ("--confirm 3", "confirm", 3),
        ("--confirm-seeds 5", "confirm_seeds", 5),
        ("--confirm-base", "confirm_base", True),
    ],
)
def test_what_a_study_computes_on_may_differ(
    given: str, field: str, value: object, begun: Path
) -> None:
    classes = Recipe, TuneConfig, PerWorker, RunConfig
    argv = ["--resume", "--name", "old", "--storage", str(begun), *given.split()]
    parsed = flags.parse(argv, "tune", *classes, description="d")
    values = {name: each for config in parsed for name, each in config.model_dump().items()}
    assert values[field] == value


def test_a_resumed_study_goes_on_with_its_newest_settings(home: Place) -> None:
    began = {**Recipe(holdout=100).model_dump(), **PerWorker().model_dump()}
    began |= TuneConfig(num_trials=4).model_dump()
    for name in ("trial_00003", "trial_00009", "workers/trial_00009"):
        storage.make(home / "it" / name)
        storage.write(home / "it" / name / "file", b"")
    storage.write(home / "it" / "tune.yaml", yaml.safe_dump(began).encode())
    storage.write(home / "it" / tables.PREDICTIONS, b"")
    changes.record_change(home / "it", 9, {"num_trials": 7, "confirm": 2})
    assert changes.goes_on(home / "it")  # it has no winner until it ends again
    # What a trial that comes after the change left before it is not that trial's.
    assert run_folder.trial_numbers(home / "it") == {3}
    changes.record_change(home / "it", 12, {"num_trials": 8, "confirm": 2})
    changes.record_change(home / "it", 12, {"num_trials": 9, "confirm": 3})
    over_time = changes.settings_over_time(home / "it")
    assert [(after, now["num_trials"], now["confirm"]) for after, now in over_time] == [
        *((0, 4, None), (9, 7, 2)),
        (12, 9, 3),  # nothing was planned with 8
    ]
    run = RunConfig(storage=str(home), name="it", resume=True)
    newest = {**began, "num_trials": 9, "confirm": 3}
    assert changes.recorded_settings(run, "tune") == newest
    argv = ["--resume", "--name", "it", "--storage", str(home)]
    classes = Recipe, TuneConfig, PerWorker, RunConfig
    _, tuning, *_ = flags.parse(argv, "tune", *classes, description="d")
    assert (tuning.num_trials, tuning.confirm) == (9, 3)
    for torn in (b"changes: 3", b"changes: [3]", b"changes: [{num_trials: 3}]", b"changes: ["):
        storage.write(home / "it" / changes.CHANGES, torn)
        with pytest.raises(UserError, match=r"config .*changes\.yaml"):
            changes.settings_over_time(home / "it")


@pytest.mark.parametrize(
    ("began", "given", "workers"),
    [
        ("1:4", "", (1, 4)),
        ("1:4", "1:2", (1, 2)),
        ("1:4", "2:4", (2, 4)),
        ("1:4", "2", (None, 2)),
        ("1:4", "1:8", "num_workers is 8, but old began with 4"),
        ("1:4", "8", "num_workers is 8, but old began with 4"),
        ("2:4", "1:4", "min_workers is 1, but old began with 2"),
        ("2:4", "1", "num_workers is 1, but old began with 4"),
        ("2", "2:2", (2, 2)),
        ("2", "1:2", "min_workers is 1, but old began with None"),
        ("2", "1", "num_workers is 1, but old began with 2"),
    ],
)
def test_a_training_run_goes_on_with_workers_that_it_might_have_had(
    began: str, given: str, workers: tuple[int | None, int] | str, tmp_path: Path
) -> None:
    settings = {**Recipe().model_dump(), **Resources().replace(num_workers=began).model_dump()}
    with run_folder.locked(tmp_path / "old", "train", settings):
        pass
    argv = ["--resume", "--name", "old", "--storage", str(tmp_path)]
    argv += ["--cpus-per-worker", "3", "--no-use-gpu"]
    argv += [f"--num-workers={given}"] if given else []
    if isinstance(workers, str):
        with pytest.raises(UserError, match=workers):
            flags.parse(argv, "train", Recipe, Resources, RunConfig, description="d")
        return
    _, asked, _ = flags.parse(argv, "train", Recipe, Resources, RunConfig, description="d")
    assert (asked.min_workers, asked.num_workers) == workers
    assert (asked.cpus_per_worker, asked.use_gpu) == (3, False)


ON_TWO = {"workers": 1, "device": "cpu", "threads": 2, "arithmetic": "bf16"}


@pytest.mark.parametrize(
    ("recorded", "now", "says"),
    [
        ([], {}, None),
        ([ON_TWO], {}, None),
        ([{"epoch": 1}], {"threads": 1}, None),  # written before it was recorded
        ([ON_TWO], {"threads": 1}, "begun with 2 threads, resumed with 1 thread:"),
        ([{"epoch": 1}, ON_TWO], {"threads": 1}, "begun with 2 threads, resumed with 1 thread:"),
        # Of a run that is resumed again, what it began with counts.
        ([ON_TWO, {**ON_TWO, "threads": 1}], {"threads": 1}, "begun with 2 threads, resumed"),
        ([ON_TWO, {**ON_TWO, "threads": 1}], {"threads": 2}, None),
        ([{**ON_TWO, "workers": 4}], {"workers": 1}, "begun with 4 workers, resumed with 1 worker"),
        (
            [ON_TWO],
            {"device": "cuda", "threads": 8, "arithmetic": "bf16"},
            "begun with device cpu, resumed with device cuda: the weights will differ slightly from"
            " an undisturbed run's",
        ),
        (
            [ON_TWO],
            {"threads": 4, "arithmetic": "fp32"},
            "begun with 2 threads and arithmetic bf16, resumed with 4 threads and arithmetic fp32:",
        ),
        ([{**ON_TWO, "device": "cuda"}], {"device": "cuda", "threads": 1}, None),
    ],
)
def test_other_bits_are_told(recorded: list[dict], now: dict, says: str | None) -> None:
    told = resume.other_bits(recorded, {**ON_TWO, **now})
    assert (told is None) == (says is None), told
    assert (says or "") in (told or "")


def test_a_run_is_one_processs_at_a_time(begun: Path) -> None:
    with (begun / "old" / "tune.yaml").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        refused = pytest.raises(UserError, match="name old is being run by another process")
        with refused, run_folder.locked(begun / "old", "tune", {}, resume=True):
            pass
    with run_folder.locked(begun / "old", "tune", {}, resume=True):
        pass


def test_a_name_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    run = RunConfig(storage=tmp_path, name="a")
    with run_folder.locked(run_folder.folder_of(run, "train"), "train", CONFIG.model_dump()):
        assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert Recipe(**changes.recorded_settings(run.replace(resume=True), "train")) == CONFIG
    refused = pytest.raises(UserError, match="name a was just taken")
    with refused, run_folder.locked(tmp_path / "a", "train", {}):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_the_command_to_go_on_is_one_that_can_be_typed() -> None:
    flags = run_folder.resume_flags(Path("/x y/run"), RunConfig(storage=Path("/x y")))
    line = command.typed("tune", *flags)
    assert line == f"{command.typed('tune')} --resume --name run --storage '/x y'"
    # What a resumed run has otherwise than it began with is given again.
    began = Resources(min_workers=1, num_workers=4).model_dump()
    now = {**began, "num_workers": 2, "cpus_per_worker": 1, "use_gpu": False}
    again = "--resume --name run --max-failures 1 --cpus-per-worker 1 --no-use-gpu --num-workers 2"
    flags = run_folder.resume_flags(Path("run"), RunConfig(max_failures=1), now, began)
    assert flags == [*again.split(), "--min-workers", "1"]
    flags = run_folder.resume_flags(Path("~/mnist_ray_results/run"), RunConfig())
    assert flags == ["--resume", "--name", "run"]
