"""Runs in an MLflow folder, for those who compare them there."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdlab.cli import report, runs
from kdlab.cli.gathering import is_plain, parameter_names
from kdlab.cli.runs import digest

if TYPE_CHECKING:
    import pandas as pd

RUN, CONTENT = "kdlab.run", "kdlab.content"
FORBIDDEN = re.compile(r"[^A-Za-z0-9_\-. ]")  # in names; slashes and colons would be folders
LONGEST = 5000  # characters of a tag or parameter
BATCH = PAGE = 1000  # metrics that MLflow takes, and runs that it gives, at once


def track(table: pd.DataFrame, source: Path, folder: Path) -> int:
    """Put the runs of a table into a local MLflow store; return how many are new or have changed.

    A lesson is an experiment. Parameters are parameters, recorded numbers are metrics
    ``record.column`` (of a record that is a table the row is the step), the notebook is an
    artifact. A run that is there as it is now is left alone; one that is there half, because its
    report was killed, is put in anew.

    Args:
        table: as ``gather`` gives it.
        source: the folder of the runs.
        folder: the store, made if it is not there.

    Raises:
        ValueError: MLflow is not installed.
    """
    client = _client(folder)
    new = 0
    for lesson, rows in table.groupby("lesson", sort=False):
        experiment = client.get_experiment_by_name(lesson)
        number = experiment.experiment_id if experiment else client.create_experiment(lesson)
        there = _there(client, number)
        for run, part in rows.groupby("run", sort=False):
            content = digest(part.dropna(axis=1, how="all").to_json(orient="records"))
            known = there.get(str(run), [])
            whole = [k for k in known if k.info.status != "RUNNING" and _content(k) == content]
            for other in known:
                if other not in whole[:1]:
                    client.delete_run(other.info.run_id)
            if not whole:
                _put(client, number, str(run), part, content, source)
                new += 1
    return new


def _client(folder: Path) -> Any:
    # nothing leaves this machine; and a folder is asked for, though MLflow prefers databases
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    try:
        from mlflow import MlflowClient
    except ImportError:
        raise ValueError(
            "mlflow: it is not installed; `pip install 'kdlab[bulk]'` brings it"
        ) from None
    return MlflowClient(tracking_uri=folder.resolve().as_uri())


def _there(client: Any, experiment: str) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    page = None
    while True:
        some = client.search_runs([experiment], max_results=PAGE, page_token=page)
        for run in some:
            found.setdefault(run.data.tags.get(RUN, ""), []).append(run)
        if not (page := some.token):
            return found


def _content(run: Any) -> str:
    return str(run.data.tags.get(CONTENT))


def _put(
    client: Any, experiment: str, run: str, rows: pd.DataFrame, content: str, source: Path
) -> None:
    from mlflow.entities import Metric, Param, RunTag

    first = rows.iloc[0]
    tags = {RUN: run, "status": first["status"]}
    made = client.create_run(experiment, tags=tags, run_name=run).info.run_id
    parameters = [Param(_name(n), str(first[n])[:LONGEST]) for n in parameter_names(rows)]
    now = int(time.time() * 1000)
    metrics = [Metric("seconds", float(first["seconds"]), now, 0)]
    for m in report.measures(rows.assign(status=runs.DONE)):
        key = _name(m.record if m.metric == "value" else f"{m.record}.{m.metric}")
        metrics += [
            Metric(key, float(value), now, int(row))
            for row, value in zip(m.rows["row"], m.rows[m.metric], strict=True)
        ]
    told = [] if first["status"] == runs.DONE else [RunTag("error", str(first["error"])[:LONGEST])]
    client.log_batch(made, params=parameters, tags=told)
    for start in range(0, len(metrics), BATCH):
        client.log_batch(made, metrics=metrics[start : start + BATCH])
    place = source / run
    # a link among them would bring a file of this machine into the store
    for path in filter(is_plain, sorted(place.glob("*")) if place.is_dir() else [place]):
        client.log_artifact(made, str(path))
    client.set_tag(made, CONTENT, content)  # last: with it the run is whole
    client.set_terminated(made, "FINISHED" if first["status"] == runs.DONE else "FAILED")


def _name(text: str) -> str:
    """Return a name that MLflow takes; a hash tells apart what would be too long."""
    name = FORBIDDEN.sub("_", text)
    return name if 0 < len(name) <= 250 and name.strip(".") else f"{name[:200]}-{digest(text)}"
