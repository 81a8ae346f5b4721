"""MLflow, in a local database or on a server: https://mlflow.org."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from research.errors import UserError, message_of
from research.training.records.clock import Clock
from research.training.records.hyperparameters import hyperparameters_of
from research.training.records.trackers.base import (
    NOWHERE,
    AppendOnly,
    Position,
    check_package,
    run_id,
    run_name,
)

TAG = "research.tracking_id"
"""The tag by which a run is found again."""

MAX_CHARACTERS = 500
"""Length of a parameter's value that all of MLflow's stores take."""


class MLflow(AppendOnly):
    """A run of an MLflow experiment.

    Args:
        run_dir: the run directory.
        experiment: where the run belongs; it is made if it does not exist.
        tracking_uri: such as ``sqlite:////home/me/mlflow.db`` or ``http://server:5000``; None for
            MLFLOW_TRACKING_URI, or MLflow's default without one.

    Raises:
        UserError: the package is missing.

    """

    def __init__(self, run_dir: Path, *, experiment: str, tracking_uri: str | None) -> None:
        check_package("mlflow", extra="mlflow")
        self.run_dir = run_dir
        self.experiment = experiment
        self.tracking_uri = tracking_uri
        self.client: Any = None

    def start(self, hyperparameters: Mapping[str, object]) -> Position:
        try:
            mlflow = importlib.import_module("mlflow")
            self.entities = importlib.import_module("mlflow.entities")
            # requests' errors are OSErrors; a database's are wrapped by MLflow.
            self.errors = (mlflow.exceptions.MlflowException, OSError)
            self.client = mlflow.MlflowClient(self.tracking_uri)
            run = self.find_or_create_run()
            self.run_id = run.info.run_id
            self.start_ms = run.info.start_time
            self.client.update_run(self.run_id, "RUNNING")
            if not run.data.params:
                self.client.log_batch(self.run_id, params=self.parameters(hyperparameters))
            points = self.client.get_metric_history(self.run_id, "seconds")
        except ImportError as error:  # of a store's own packages
            raise UserError(f"MLflow: {message_of(error)}; pip install -e '.[mlflow]'") from error
        except self.errors as error:
            raise UserError(
                f"MLflow could not start a run in experiment '{self.experiment}' at "
                f"logger.mlflow.tracking_uri={self.tracking_uri}: {message_of(error)}"
            ) from error
        return max((Position(each.step, each.value) for each in points), default=NOWHERE)

    def find_or_create_run(self) -> Any:
        """This run of the experiment, or a new one."""
        experiment = self.client.get_experiment_by_name(self.experiment)
        if experiment is None:
            experiment_id = self.client.create_experiment(self.experiment)
        else:
            experiment_id = experiment.experiment_id
        identity = run_id(self.run_dir)
        runs = self.client.search_runs([experiment_id], f"tags.`{TAG}` = '{identity}'")
        if runs:
            return runs[0]
        tags = {TAG: identity, "run_dir": str(self.run_dir.resolve())}
        return self.client.create_run(experiment_id, run_name=run_name(self.run_dir), tags=tags)

    def parameters(self, hyperparameters: Mapping[str, object]) -> list[Any]:
        """Hyperparameters as MLflow takes them; those too long for it are cut."""
        flat = hyperparameters_of(hyperparameters)
        return [
            self.entities.Param(name, str(value)[:MAX_CHARACTERS]) for name, value in flat.items()
        ]

    def log(self, scalars: Mapping[str, float], clock: Clock) -> None:
        # The same each time that the point is sent, so that MLflow knows it again.
        time_ms = self.start_ms + int(1000 * clock.seconds)
        values = {**clock._asdict(), **scalars}
        metrics = [
            self.entities.Metric(name, value, time_ms, clock.step)
            for name, value in values.items()
            if name != "step"
        ]
        self.client.log_batch(self.run_id, metrics=metrics)

    def log_video(self, name: str, path: Path, clock: Clock) -> None:
        self.client.log_artifact(self.run_id, str(path), artifact_path=name)

    def finish(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self.client.log_metric(self.run_id, name, value)
        self.client.set_terminated(self.run_id, "FINISHED")
        self.client = None

    def close(self) -> None:
        if self.client is not None:
            self.client.set_terminated(self.run_id, "KILLED")
            self.client = None
