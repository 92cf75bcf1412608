"""What people type and see: flags, commands to copy, and the displays of a run and of a study.

Never imports torch or Ray: it shows what it is handed.
"""

from mnist_ray.terminal.command import parser as command_parser
from mnist_ray.terminal.command import typed
from mnist_ray.terminal.completion import completion
from mnist_ray.terminal.flags import parse as parse_flags
from mnist_ray.terminal.flags import parser as flags_parser
from mnist_ray.terminal.flags import settle
from mnist_ray.terminal.study import Study as StudyDisplay
from mnist_ray.terminal.training import Training as TrainingDisplay

__all__ = [
    "StudyDisplay",
    "TrainingDisplay",
    "command_parser",
    "completion",
    "flags_parser",
    "parse_flags",
    "settle",
    "typed",
]
