"""Watch a trained policy: ``python -m research.watch RUN [episodes=3 seed=1 ...]``."""

import sys
from collections.abc import Sequence

from research.results.command import run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command of the command line; returns the exit status."""
    return run("watch", watch_run, arguments, description=DESCRIPTION, options=OPTIONS)


def watch_run(words: list[str]) -> None:
    """Film the policy of the run that the words name."""
    from research.results.arguments import parse
    from research.results.runs import only
    from research.results.watch import WatchOptions, watch

    paths, options = parse(words, WatchOptions)
    watch(only(paths), options)


DESCRIPTION = """\
Film a trained policy in its environment: the episodes of an evaluation with the same seed,
as a video and, beside it, as a picture of some frames of each episode."""

OPTIONS = """\
options:
  episodes=3             number of episodes (3)
  seed=1                 of the episodes, at least 0 (the run's own)
  checkpoint=best|last   the one with the best score, or the last (best)
  fps=25                 largest number of frames per second, at true speed (one for each step)
  size=640x480           of a frame (the environment's own)
  out=FILE.mp4           (videos/STEP-seedSEED.mp4 in the run directory)
  device=cuda            (cpu)
  env.KEY=VALUE          a change of the environment, such as env.camera_id=1
  trusted_modules=[m]    modules of yours that the config may name"""

if __name__ == "__main__":
    sys.exit(main())
