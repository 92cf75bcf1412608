"""What each scheduler would have done on the recorded curves: `python replay.py` prints two tables
and writes signals.csv and schedulers.csv. ASHA and median stopping are the product's own."""

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from scipy.stats import spearmanr

from mnist_ray import schedulers, search
from mnist_ray.config import STUDY_RECIPE, TrainConfig, TuneConfig
from mnist_ray.plan import Plan

HERE = Path(__file__).parent
KEEP = 4
CURVES = pd.read_csv(HERE / "curves.csv")
FULL = CURVES[CURVES["way"] == "full"].sort_values(["trial", "epoch"])
EPOCHS = FULL["epoch"].max()
TRIALS = sorted(FULL["trial"].unique())
DIVERGED = set(FULL[FULL["status"] == "diverged"]["trial"])
FINAL = FULL[~FULL["trial"].isin(DIVERGED)].groupby("trial")["accuracy"].last()
WEIGHTS = ["accuracy", "accuracy_ema_0.98", "accuracy_ema_0.995"]


class Trial:
    """What a scheduler of Tune's looks at."""

    def __init__(self, number: int) -> None:
        self.number, self.trial_id, self.config = number, str(number), {"phase": "search"}
        self.epoch = 0


def stopped_on_the_way(name: str, weights: str) -> tuple[int, list[int]]:
    """Epochs spent, and the trials that came to their end, two at a time, in order."""
    study = TuneConfig(scheduler=name)
    recipe = TrainConfig(**{**STUDY_RECIPE, "epochs": int(EPOCHS)})
    policy = schedulers.scheduler(Plan(study, recipe, search.parse(study.dimensions(), recipe)))
    seen = FULL.set_index(["trial", "epoch"])[weights]
    waiting, running, ended, spent = list(TRIALS), [], [], 0
    while waiting or running:
        while waiting and len(running) < 2:
            running.append(Trial(waiting.pop(0)))
            policy.on_trial_add(None, running[-1])
        for trial in list(running):
            trial.epoch += 1
            spent += 1
            last = trial.epoch == EPOCHS or (trial.number, trial.epoch + 1) not in seen.index
            result = {"epoch": trial.epoch, "last": last, "training_iteration": trial.epoch}
            result[schedulers.METRIC] = seen[trial.number, trial.epoch]
            decision = policy.on_trial_result(None, trial, result)
            if decision == "STOP" or last:
                running.remove(trial)
                if last and trial.number not in DIVERGED:
                    ended.append(trial.number)
                policy.on_trial_complete(None, trial, result)
    return spent, ended


def signal(way: str, epoch: int, weights: str) -> pd.Series:
    rows = CURVES[(CURVES["way"] == way) & (CURVES["epoch"] == epoch)]
    return rows.set_index("trial")[weights].reindex(TRIALS).fillna(0.0)


def first(by: pd.Series, n: int) -> list[int]:
    return list(by.sort_values(ascending=False, kind="stable").index[:n])


def winner_of(trials: list[int]) -> int:
    return int(FINAL.reindex(trials).idxmax())


def signals() -> pd.DataFrame:
    rows = []
    kinds = [("full", 1), ("full", 3), ("complete-1", 1), ("constant-1", 1)]
    for way, epoch in kinds:
        for weights in WEIGHTS:
            seen = signal(way, epoch, weights)
            final = FINAL.reindex(TRIALS).fillna(0.0)
            kept = first(seen, KEEP)
            rows.append(
                {
                    "trained as": way,
                    "after epoch": epoch,
                    "scored": weights,
                    "rank correlation": spearmanr(seen, final).statistic,
                    "regret of the best 4, points": 100 * (FINAL.max() - FINAL.reindex(kept).max()),
                    "best trial is ranked": first(seen, len(TRIALS)).index(winner_of(TRIALS)) + 1,
                }
            )
    return pd.DataFrame(rows)


def compared() -> pd.DataFrame:
    rows = []

    def add(name: str, run: Callable[[], tuple[int, list[int]]]) -> None:
        spent, ended = run()
        winner = winner_of(ended)
        rows.append(
            {
                "scheduler": name,
                "epochs": spent,
                "times fewer": len(TRIALS) * EPOCHS / spent,
                "trials ended": len(ended),
                "winner": winner,
                "its accuracy": FINAL[winner],
            }
        )

    add("all to the end", lambda: (len(FULL), [int(i) for i in FINAL.index]))
    for weights in WEIGHTS:
        for name in ("asha", "median"):
            add(f"{name}, {weights}", lambda n=name, w=weights: stopped_on_the_way(n, w))
        kept = first(signal("full", 1, weights), KEEP)
        cost = len(TRIALS) + KEEP * (EPOCHS - 1)
        add(f"one rung, going on, {weights}", lambda k=kept, c=cost: (c, k))
    for way in ("complete-1", "constant-1"):
        kept = first(signal(way, 1, "accuracy"), KEEP)
        add(f"one rung, {way}", lambda k=kept: (len(TRIALS) + KEEP * EPOCHS, k))
    return pd.DataFrame(rows)


if __name__ == "__main__":
    for name, table in (("signals", signals()), ("schedulers", compared())):
        table.to_csv(HERE / f"{name}.csv", index=False, float_format="%.6g")
        print(table.to_string(index=False, float_format=lambda value: f"{value:.4f}"), "\n")
