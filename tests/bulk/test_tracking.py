"""Runs in an MLflow folder: each once, whole, and as they are now."""

import itertools
import os
import signal
import sys

import pytest
from bulk_hands import forking, in_a_fork, kdlab, keep

from kdlab.cli import report_files, runs, tracking
from kdlab.cli.gathering import gather

RECORDS = [
    {"name": "accuracy", "value": 0.75},
    {"name": "steps", "value": [{"‖J‖/d": 1.0}, {"‖J‖/d": None}, {"‖J‖/d": 3.0}]},
]


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(report_files, "write", lambda *arguments: [])
    monkeypatch.setattr(tracking, "BATCH", 2)
    monkeypatch.setattr(tracking, "PAGE", 1)
    out = tmp_path / "runs"
    run = keep(out, {"temperature": 4.0, "hidden": [8, 4]}, RECORDS)
    (run.folder / "stolen").symlink_to(__file__)  # is not brought into the store
    keep(out, {"temperature": 2.0, "hidden": [8]}, status=runs.FAILED, reason="MemoryError: no")
    return out


def stored(folder):
    """Run name → MLflow's run, of all that are there; none twice."""
    client = tracking._client(folder)
    experiment = client.get_experiment_by_name("tiny").experiment_id
    found = client.search_runs([experiment])
    by_name = {run.data.tags[tracking.RUN]: run for run in found}
    assert len(by_name) == len(found), "a run is there twice"
    return by_name, client


def test_runs_are_put_into_a_folder_once(kept, tmp_path):
    pytest.importorskip("mlflow")
    store = tmp_path / "ml flow"
    assert "2 runs new or changed" in kdlab("report", kept, "--mlflow", store)[1]
    by_name, client = stored(store)
    table = gather(kept)
    done = by_name[table[table["status"] == "done"]["run"].iloc[0]]
    failed = by_name[table[table["status"] == "failed"]["run"].iloc[0]]
    assert done.info.status == "FINISHED" and failed.info.status == "FAILED"
    assert done.data.params == {"seed": "0", "temperature": "4.0", "hidden": "[8, 4]"}
    assert done.data.metrics == {"accuracy": 0.75, "steps._J__d": 3.0, "seconds": 2.5}
    history = client.get_metric_history(done.info.run_id, "steps._J__d")
    assert [(m.step, m.value) for m in history] == [(0, 1.0), (2, 3.0)]
    assert failed.data.tags["error"] == "MemoryError: no"
    names = [artifact.path for artifact in client.list_artifacts(done.info.run_id)]
    assert names == ["run.json", "tiny.ipynb"]
    assert "0 runs new" in kdlab("report", kept, "--mlflow", store)[1]
    keep(kept, {"temperature": 4.0, "hidden": [8, 4]}, [{"name": "accuracy", "value": 0.5}])
    assert "1 run new" in kdlab("report", kept, "--mlflow", store)[1]
    assert {r.data.metrics.get("accuracy") for r in stored(store)[0].values()} == {0.5, None}


@forking
def test_killed_at_any_step_the_next_report_puts_it_right(kept, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    store, client = tmp_path / "store", mlflow.MlflowClient
    names = ("create_experiment", "create_run", "log_batch", "log_artifact", "set_tag")
    for step in (1, 2, 3, 5, 6, 7):
        steps = itertools.count(1)

        def dying(original, steps=steps, step=step):
            def call(*arguments, **options):
                done = original(*arguments, **options)
                if next(steps) == step:
                    os.kill(os.getpid(), signal.SIGKILL)
                return done

            return call

        with monkeypatch.context() as patch:
            for name in (*names, "set_terminated"):
                patch.setattr(client, name, dying(getattr(client, name)))
            process = in_a_fork("report", kept, "--mlflow", store)
            process.join()
        assert process.exitcode == -signal.SIGKILL
    code, _ = kdlab("report", kept, "--mlflow", store)
    by_name, _ = stored(store)
    assert code == 0 and {run.info.status for run in by_name.values()} == {"FINISHED", "FAILED"}
    assert by_name.keys() == set(gather(kept)["run"])


def test_without_mlflow_it_says_so(kept, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    code, told = kdlab("report", kept, "--mlflow", tmp_path / "store")
    assert code == 1 and "pip install 'kdlab[bulk]'" in told
