"""What each lever of the screen does, from runs.csv: high minus low, in points and in nats."""

import pandas as pd
from explore import LEVERS, OVER, RUNS

runs = pd.read_csv(RUNS)
runs = runs[runs.stage == "screen"]
scores = ["", *(f"_{over:g}" for over in OVER)]
rows = {}
for lever, (low, high) in LEVERS.items():
    means = runs.groupby(lever).mean(numeric_only=True)
    if len(means) < 2:  # the screen has not got to the other level yet
        continue
    difference = means.loc[high] - means.loc[low]
    rows[f"{lever} {low:g} -> {high:g}"] = {
        **{f"accuracy{score}": 100 * difference[f"accuracy{score}"] for score in scores},
        **{f"loss{score}": difference[f"loss{score}"] for score in ("", "_0.05")},
    }
print(pd.DataFrame(rows).T.round(4).to_string())
