"""The search: which configurations to try next, in which phases, and what won.

It decides from the rows of the trials table. It never imports torch, Ray or another part, and
Optuna only when it samples.
"""

from mnist_ray.search.dimension import Dimension, read_dimension
from mnist_ray.search.earlier import Earlier, Known, configurations
from mnist_ray.search.outcome import Phase, Status, against_base, verdict
from mnist_ray.search.plan import CHANGEABLE, Plan
from mnist_ray.search.samplers import SAMPLERS, SCHEDULERS, Method, Policy, policy
from mnist_ray.search.sampling import LAG, Sampler, sampler, space_of
from mnist_ray.search.space import identity, parse
from mnist_ray.search.statistics import in_percent, mean_and_deviation, welch, wilson
from mnist_ray.search.trials import Planned

__all__ = [
    "CHANGEABLE",
    "LAG",
    "SAMPLERS",
    "SCHEDULERS",
    "Dimension",
    "Earlier",
    "Known",
    "Method",
    "Phase",
    "Plan",
    "Planned",
    "Policy",
    "Sampler",
    "Status",
    "against_base",
    "configurations",
    "identity",
    "in_percent",
    "mean_and_deviation",
    "parse",
    "policy",
    "read_dimension",
    "sampler",
    "space_of",
    "verdict",
    "welch",
    "wilson",
]
