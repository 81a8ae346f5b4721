"""Evaluate trained runs: ``python -m research.evaluate RUN... [episodes=50 seed=1 ...]``."""

import sys
from collections.abc import Sequence

from research.results.command import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command of the command line; returns the exit status."""
    return run("evaluate", evaluate, arguments, description=DESCRIPTION, options=OPTIONS)


def evaluate(words: list[str]) -> bool:
    """Evaluate the runs that the words name; returns whether all could be."""
    from research.results.arguments import parse
    from research.results.evaluate import EvaluationOptions, evaluate_runs
    from research.results.find import find

    paths, options = parse(words, EvaluationOptions)
    return evaluate_runs(find(paths), options)


DESCRIPTION = """\
Evaluate trained runs as they were evaluated in training, and add the result to
evaluation.json of each. A RUN is a run directory, a sweep, or a folder of such."""

OPTIONS = """\
options, by default as in training, which gives the numbers of eval.csv:
  checkpoint=best|last   the one with the best score, or the last (best)
  episodes=50            number of episodes
  seed=1                 of the episodes, at least 0
  num_envs=8             environments at once
  device=cuda            (cpu)
  env.KEY=VALUE          a change of the environment, such as env.max_episode_steps=200
  trusted_modules=[m]    modules of yours that the configs may name"""

if __name__ == "__main__":
    sys.exit(main())
