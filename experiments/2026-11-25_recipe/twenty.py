"""Twenty-epoch runs in bfloat16, after the shorter ones: `python twenty.py`. Writes twenty.csv.

Runs that twenty.csv has already are skipped. Two processes with a thread each.
"""

from pathlib import Path
from typing import Any

from augment import BASE, COLUMNS
from leads import fitted, name, record

TABLE = Path(__file__).parent / "twenty.csv"
CHANGES: list[dict[str, Any]] = [
    {"augment_until": 1},
    {"augment_until": 0.9, "weight_decay": 2e-4},
    {"augment_until": 0.9, "shift": 1.5, "rotation": 8},
    {"augment_until": 1, "weight_decay": 2e-4, "lr": 0.2},
]


def run(change: dict[str, Any]) -> dict[str, Any]:
    config = BASE.replace(epochs=20, precision="bf16", seed=1, **change)
    return {"change": name(change), "seed": 1, **fitted(config)[0]}


if __name__ == "__main__":
    record(TABLE, COLUMNS, run, {(name(change), "1"): change for change in CHANGES})
