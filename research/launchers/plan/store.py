"""Hydra's store of structured configs, copied less."""

from hydra.core.config_store import ConfigStore


def share_config_store() -> None:
    """Keep Hydra from copying its whole config store for each config that it composes.

    It does so for each job of a sweep and each group that ``--help`` lists, 20 ms each time,
    although there is one store per process, and what is taken from it is copied anyway.
    """
    setattr(ConfigStore, "__deepcopy__", lambda store, memo: store)  # noqa: B010
