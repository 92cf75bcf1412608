"""What a study costs on the instances of cluster.yaml, by how many workers it has: cost.csv.

hours = (sum over the phases of ceil(trials / at a time) x epochs x images / speed
         + trials x driver) / 3600
price = hours x (head + workers x worker)
"""

import argparse
import csv
import math
from pathlib import Path

from mnist_ray import search
from mnist_ray.config import STUDY_RECIPE, Recipe, TuneConfig
from mnist_ray.search import Plan

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=1000, help="Configurations.")
    parser.add_argument("--speed", type=float, default=1500, help="Images/s on a vCPU.")
    parser.add_argument("--vcpus", type=int, default=4, help="Of a worker.")
    parser.add_argument("--head", type=float, default=0.096, help="USD an hour, on demand.")
    parser.add_argument("--worker", type=float, default=0.07, help="USD an hour, spot.")
    parser.add_argument("--driver", type=float, default=0.15, help="Seconds a trial costs it.")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 4, 16, 64, 256])
    args = parser.parse_args()
    study, base = TuneConfig(num_trials=args.trials), Recipe(**STUDY_RECIPE)
    plan = Plan(study, base, search.sampler(study, base))
    outline = plan.outline()
    rows = []
    for workers in args.workers:
        at_a_time = workers * args.vcpus
        seconds = args.driver * sum(outline.values())
        for phase, trials in outline.items():
            epochs = 1 if phase == "screen" else plan.epochs
            seconds += math.ceil(trials / at_a_time) * epochs * plan.images(phase) / args.speed
        hours = seconds / 3600
        price = hours * (args.head + workers * args.worker)
        rows.append({"workers": workers, "hours": f"{hours:.2f}", "usd": f"{price:.2f}"})
    with (HERE / "cost.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(outline)
    print((HERE / "cost.csv").read_text())


if __name__ == "__main__":
    main()
