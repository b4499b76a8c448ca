"""The page for people with a model of their own: its example runs, from top to bottom."""

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[2] / "docs" / "your_own_model.md"


def test_its_example_runs(tmp_path, monkeypatch, capsys):
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 6
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"block {number} of {PAGE.name}", "exec"), names)
        if number == 1:
            before = {n: t.clone() for n, t in names["teacher"].backbone.state_dict().items()}
    told = capsys.readouterr().out
    assert "torch.Size([4, 3])" in told and "backbone.5" in told
    assert names["run"].history.last["val_accuracy"] > 0.8
    assert (names["logits"].argmax(1) == names["y_test"]).mean() > 0.8
    assert names["names"] == ["minke", "blue", "sei"]
    after = names["teacher"].backbone.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
