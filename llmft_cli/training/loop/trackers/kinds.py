"""Beginning a run of each tracker, for transformers' callback to log to.

Files are kept in the run directory unless the tracker's own environment variables say otherwise.
"""

from __future__ import annotations

import logging
import os
import shlex
import shutil
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmft_cli.base import wandb_account
from llmft_cli.base.reporter import Reporter
from llmft_cli.settings.config import of_command
from llmft_cli.training.loop.trackers.guard import Request, Tracker, described

if TYPE_CHECKING:
    from wandb import Run

LOGIN_TIMEOUT_SECONDS = 10  # wandb's own is 90
PROJECT = "llm-fine-tuning"  # of trackers that have projects or experiments, but no setting for them


# -- Weights & Biases: online if logged in and reachable, otherwise offline; it never prompts


def begin_wandb(request: Request) -> Tracker:
    from transformers.integrations import WandbCallback

    os.environ["WANDB_SILENT"] = "true"
    # wandb's error telemetry prints its own failures after our result.
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    options: dict[str, Any] = {"project": request.config.wandb_project, "name": request.name, "dir": str(request.folder)}
    options |= {"config": of_command(request.config, "train"), "id": request.id, "resume": request.id and "allow"}
    started = wandb_run(options, request.reporter)

    def end(failed: bool) -> None:
        started.finish(exit_code=int(failed))
        if started.offline:
            parts = sorted((request.folder / "wandb").glob(f"offline-run-*-{started.id}"))
            request.reporter.note(
                "W&B is not logged in or not reachable; the run was saved offline. "
                f"To sync: wandb sync {shlex.join(map(str, parts))}"
            )

    return Tracker(WandbCallback(), end, started.id)


def wandb_run(options: Mapping[str, Any], reporter: Reporter) -> Run:
    """A W&B run, which transformers' callback finds; offline if its server rejects it or takes too long."""
    import wandb

    limits = wandb.Settings(init_timeout=LOGIN_TIMEOUT_SECONDS)
    if wandb_account.can_log_online():
        try:
            return wandb.init(**options, mode="online", settings=limits)
        except wandb.Error as error:
            reporter.warn(f"W&B could not start the run online ({described(error)})")
    return wandb.init(**options, mode="offline", settings=limits)


# -- TensorBoard


def begin_tensorboard(request: Request) -> Tracker:
    """Event files in RUN/tensorboard, or TENSORBOARD_LOGGING_DIR; those of a training that is begun anew are deleted."""
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    given = os.environ.get("TENSORBOARD_LOGGING_DIR")
    folder = Path(given).expanduser() if given else own_folder(request, "tensorboard")
    # Steps that are trained again replace those that were logged before the interruption.
    writer = SummaryWriter(str(folder), purge_step=request.done_steps + 1 if request.done_steps else None)
    return Tracker(TensorBoardCallback(writer), lambda failed: writer.close())


def own_folder(request: Request, name: str) -> Path:
    """A folder of the run directory; without what an earlier training left in it."""
    folder = request.folder / name
    if not request.done_steps:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    return folder


# -- MLflow


def begin_mlflow(request: Request) -> Tracker:
    """A run in RUN/mlflow, or where MLFLOW_TRACKING_URI says."""
    # By itself it tries for many minutes, while the training waits.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    import mlflow
    from transformers.integrations import MLflowCallback

    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    place = None
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        folder = own_folder(request, "mlflow")
        place = (folder / "artifacts").as_uri()
        mlflow.set_tracking_uri(f"sqlite:///{folder / 'mlflow.db'}")
    client = mlflow.MlflowClient()
    # Taken out: the callback would begin a second run.
    run_id = existing_mlflow_run(client, os.environ.pop("MLFLOW_RUN_ID", None) or request.id)
    experiment = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
    known = client.get_experiment_by_name(experiment)
    number = known.experiment_id if known else client.create_experiment(experiment, artifact_location=place)
    started = mlflow.start_run(run_id=run_id, experiment_id=None if run_id else number, run_name=request.name)
    return Tracker(MLflowCallback(), lambda failed: mlflow.end_run("FAILED" if failed else "FINISHED"), started.info.run_id)


def existing_mlflow_run(client: Any, run_id: str | None) -> str | None:
    """The id, if there is such a run."""
    with suppress(Exception):
        return run_id and client.get_run(run_id).info.run_id
    return None


def mlflow_needs() -> tuple[str, ...]:
    return ("mlflow",) if os.environ.get("MLFLOW_TRACKING_URI") else ("mlflow", "sqlalchemy", "alembic")


def mlflow_is_disabled() -> bool:
    return os.environ.get("DISABLE_MLFLOW_INTEGRATION", "").upper() == "TRUE"


# -- Trackio


def begin_trackio(request: Request) -> Tracker:
    """A run in RUN/trackio, or where TRACKIO_DIR, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say."""
    shared = any(os.environ.get(name) for name in ("TRACKIO_DIR", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"))
    if not os.environ.get("TRACKIO_DIR"):
        os.environ["TRACKIO_DIR"] = str(own_folder(request, "trackio"))
    import trackio
    from transformers.integrations import TrackioCallback

    # It continues a run by its name, which others may have in a shared place.
    name = request.id or (f"{request.name}-{datetime.now():%Y%m%d-%H%M%S}" if shared else request.name)
    request.arguments.run_name, request.arguments.project = name, PROJECT

    def end(failed: bool) -> None:
        if trackio.context_vars.current_run.get() is not None:
            trackio.finish()

    return Tracker(TrackioCallback(), end, name)
