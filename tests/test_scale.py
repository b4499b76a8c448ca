"""docs/scale.md: its tables come from the package, its script runs, its links lead somewhere."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


@pytest.fixture
def scale(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    monkeypatch.delitem(sys.modules, "scale", raising=False)
    import scale

    return scale


def test_tables_are_fresh(scale):
    assert scale.render(TEXT) == TEXT, "run tools/scale.py and commit the result"
    assert scale.main(["--check"]) == 0


def test_another_size_of_the_cache_is_noticed(scale, monkeypatch):
    monkeypatch.setattr(scale, "cache_bytes", lambda samples, classes: 4 * samples * classes)
    assert scale.main(["--check"]) == 1
    assert scale.cache().count("\n") >= 4 and scale.fits().count("\n") >= 2


def test_numbers_are_readable(scale):
    counts = (24, 999, 1_200, 10_200_000, 2e12, 5e15, 3e18)
    said = ["24 bytes", "999 bytes", "1.2 kB", "10 MB", "2.0 TB", "5.0 PB", "3000 PB"]
    assert [scale.human(count) for count in counts] == said


def test_the_script_runs(tmp_path, monkeypatch, capsys):
    (script,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    quick = script.replace("    batch_size=128,\n", "    batch_size=128,\n    epochs=1,\n")
    assert quick != script
    monkeypatch.chdir(tmp_path)
    exec(quick, {})
    assert "val_accuracy" in capsys.readouterr().out
    assert (tmp_path / "runs" / "student.pt").exists()


def test_what_the_page_names_exists():
    from kdlab import distillers
    from kdlab.training import distributed

    for name in ("Relational", "SimilarityPreserving", "CorrelationCongruence", "Probabilistic"):
        assert f"`{name}`" in TEXT and hasattr(distillers, name)
    assert f"`{distributed.TIMEOUT}`" in TEXT
    assert f"find\n  out in {distributed.PATIENCE:g} s" in TEXT
    assert [int(word) for word in re.findall(r"wait for (\d+) minutes", TEXT)] == [
        distributed.longest_wait().total_seconds() / 60
    ]


def test_the_manifests_are_whole():
    import yaml

    (manifest,) = re.findall(r"```yaml\n(.*?)```", TEXT, re.S)
    service, job = yaml.safe_load_all(manifest)
    template = job["spec"]["template"]["spec"]
    assert template["subdomain"] == service["metadata"]["name"]
    command = template["containers"][0]["command"]
    assert f"--nnodes={job['spec']['completions']}" in command
    (host,) = re.findall(r"--rdzv-endpoint=(\S+?):", " ".join(command))
    assert host == f"{job['metadata']['name']}-0.{template['subdomain']}"
    (batch,) = re.findall(r"```bash\n(.*?)```", TEXT, re.S)
    assert subprocess.run(["bash", "-n"], input=batch, text=True).returncode == 0
