"""Imports, once for all forked processes, what ``train.py`` would import each time."""

import tensorboard  # noqa: F401
import torch._dynamo  # noqa: F401

import research.machine.device
import research.training.trainer  # noqa: F401
import train  # noqa: F401
from research.envs.rendering import import_suite

import_suite()  # as the environments do, so that no rendering library is chosen yet
