"""Whatever a stranger hands in: reading it executes nothing, and no command ends in a traceback."""

import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from bulk_hands import kdlab, keep
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from report_hands import tell
from torch import nn

from kdlab import datasets, plots
from kdlab.cli import gathering, report, report_files, report_page, running, runs, student
from kdlab.compression import export, load
from kdlab.compression.export import FACTS, OPEN, SEAL, seal
from kdlab.lab import MIME, parameters
from kdlab.training.progress import Progress

TOUCH = '__import__("os").system("touch canary")'
MARKUP = "<script>document.title='canary'</script>$\\frac{[/red]\x1b[2J"
CELLS = {
    "annotation": f"profile: {TOUCH} = 1",
    "exit": "n: exit(0) = 1",
    "text": f"n: '{TOUCH}' = 1",
    "inside": f"n: list[{TOUCH}] | None = []",
    "subscript": f"n: (lambda: {TOUCH})() = 1",
    "default": f"n: int = {TOUCH}",
    "fstring": f"n: str = f'{{{TOUCH}}}'",
    "target": f"a[{TOUCH}]: int = 1",
    "huge": "n: float = 1" + "0" * 400,
    "negative": "n: int = " + "-" * 5000 + "1",
    "deep": "n: int = " + "(" * 150 + "1" + ")" * 150,
    "long": "n: " + "int | " * 3000 + "int = 1",
    "unhashable": "n: dict = {[]: 1}",
    "keys": "n: dict = {(1, 2): 3, 'a': 4}",
    "half": "n: str = '\\ud800'",
    "zero": "n: int = 1\0",
    "magic": f"%run x.py\n!touch canary\nn: int = 1  # {TOUCH}",
}
LIMITS = f"lab.start(globals(), n={TOUCH}, **{TOUCH}, k=(1, [2]), temperature=({TOUCH}, 2))"
MODULES = ("kdlab", "pandas", "IPython", "ipykernel_launcher", "ipykernel", "sitecustomize", "yaml")


def hostile(path, cell, ran=True, **metadata):
    """A notebook that papermill seems to have run, with a kernel of its own."""
    first = new_code_cell(cell)
    first.metadata["tags"] = ["parameters"]
    record = {"name": MARKUP, "value": 0.5, MARKUP: "=1+1", "big": 2**70, "nested": {"a": []}}
    shown = new_output("display_data", {MIME: record, "text/html": MARKUP})
    body = new_code_cell(LIMITS, outputs=[shown])
    check = new_code_cell(f'lab.check("{MARKUP}", {TOUCH})')
    notebook = new_notebook(cells=[new_markdown_cell(f"# {MARKUP}"), first, body, check])
    notebook.metadata["kernelspec"] = {"name": "evil", "display_name": MARKUP, "language": "sh"}
    if ran:
        about = {"parameters": {"n": MARKUP, "record": 2**70}, "duration": 1.0, "exception": False}
        notebook.metadata["papermill"] = {**about, "start_time": "2026", **metadata}
    path.write_text(json.dumps(notebook), encoding="utf-8")


DAMAGED = {
    "deep": "[" * 100_000 + "]" * 100_000,
    "deep_metadata": '{"cells": [], "metadata": ' + '{"a":' * 5000 + "1" + "}" * 5001,
    "array": "[1]",
    "number": "1" * 5000,
    "latin": b'{"cells": ["caf\xe9"]}',
    "cells": '{"cells": {"a": 1}}',
    "source": '{"cells": [{"cell_type": "code", "source": 5}]}',
    "tags": '{"cells": [{"cell_type": "code", "source": "", "metadata": {"tags": 5}}]}',
    "outputs": '{"cells": [{"cell_type": "code", "source": "", "outputs": [7]}]}',
    "data": '{"cells": [{"cell_type": "code", "source": "", "outputs": '
    '[{"output_type": "display_data", "data": []}]}]}',
    "papermill": '{"cells": [], "metadata": {"papermill": {"parameters": [1]}}}',
    "papermill_list": '{"cells": [], "metadata": {"papermill": [1]}}',
}
FACTS_OF_STRANGERS = [
    "[]",
    "{",
    "[" * 100_000,
    '{"status": "done", "ended": 1}',
    '{"status": [], "ended": 1, "seconds": 1, "lesson": "x", "values": {}}',
    '{"status": "done", "ended": "x", "seconds": {}, "lesson": [], "values": 3}',
    '{"build": 7, "status": "done"}',
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What thirty students hand in, and where the teacher stands."""
    monkeypatch.setenv("KDLAB_PROGRESS", str(tmp_path / "progress.json"))
    place = tmp_path / "handed in"
    place.mkdir()
    for name, cell in CELLS.items():
        hostile(place / f"{name}.ipynb", cell)
    for name, text in DAMAGED.items():
        path = place / f"damaged_{name}.ipynb"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    for number, text in enumerate(FACTS_OF_STRANGERS):
        (place / f"run{number}").mkdir()
        (place / f"run{number}" / runs.FACTS).write_text(text)
    bare = {"cell_type": "code", "source": ["profile: str = 'fast'"], "outputs": []}
    (place / "bare.ipynb").write_text(json.dumps({"cells": [bare]}))
    values = {"profile": MARKUP, "record": 1, "seed": 2**70, "row": "../../x"}
    run = keep(place, values, [{"name": MARKUP, "value": 0.5}], reason=MARKUP, started=1e300)
    tell(run.folder / "tiny.json", {}, {MARKUP: True}, torch=MARKUP, name=[MARKUP])
    (run.folder / "a.json").write_text('{"claims": [1], "machine": {}, "parameters": {}}')
    secret = tmp_path / "secret"
    secret.write_text("the teacher's own")
    (run.folder / "stolen").symlink_to(secret)
    (place / "link.ipynb").symlink_to(secret)
    (place / "device.ipynb").symlink_to("/dev/zero")
    (place / "loop.ipynb").symlink_to(place / "loop.ipynb")
    os.mkfifo(place / "pipe.ipynb")
    for name in MODULES:  # what a kernel that starts here would import
        (place / f"{name}.py").write_text(f"{TOUCH}\n")
    spec = {"argv": ["sh", "-c", "touch canary"], "display_name": "x", "language": "sh"}
    (place / "kernels" / "evil").mkdir(parents=True)
    (place / "kernels" / "evil" / "kernel.json").write_text(json.dumps(spec))
    (place / "matplotlibrc").write_text("backend: module://kdlab\n")
    monkeypatch.chdir(place)
    yield place
    assert not list(tmp_path.rglob("canary")), "something was executed"


def test_a_report_on_it_executes_nothing_and_names_what_it_skips(folder, tmp_path, monkeypatch):
    def stand_in(lesson, output, values, **options):
        """A kernel starts where its notebook lies, and imports what lies there."""
        assert not options.get("folder") and not list(lesson.parent.glob("*.py"))
        output.write_bytes(lesson.read_bytes())

    monkeypatch.setattr(running, "run_lesson", stand_in)
    code, told = kdlab("report", ".", "--figures", tmp_path / "figures")
    assert code == 0 and "\x1b" not in told, told
    named = [*(f"damaged_{n}.ipynb" for n in DAMAGED), "link.ipynb", "pipe.ipynb", "device.ipynb"]
    named += [f"run{number}/run.json" for number in range(len(FACTS_OF_STRANGERS))]
    assert not [name for name in [*named, "default.ipynb"] if f"no run: {name}: " not in told]
    table = gathering.gather(folder)
    assert {"annotation", "exit", "text", "long", "tiny"} <= set(table["lesson"])
    assert table["parameter_record"].notna().any() and (table["record"] == MARKUP).any()
    page = (folder / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page
    assert not any(line.startswith("=") for line in Path("report.csv").read_text().split(","))


COMMANDS = [
    *(["sweep", f"{name}.ipynb", "--dry-run"] for name in CELLS),
    *(["sweep", f"damaged_{name}.ipynb", "--dry-run"] for name in DAMAGED),
    ["sweep", "annotation.ipynb", "-g", "n=1,2", "--dry-run"],
    ["sweep", "bare.ipynb", "-g", "profile=a,b", "--dry-run"],
    ["sweep", "pipe.ipynb", "--dry-run"],
    *(["run", f"{name}.ipynb", "-p", "nothing=1"] for name in CELLS),
    *(["run", f"damaged_{name}.ipynb", "-p", "nothing=1"] for name in DAMAGED),
    ["run", "loop.ipynb"],
    ["student", "out", "--lessons", "."],
    *(["student", f"out_{name}", f"{name}.ipynb", "--lessons", "."] for name in CELLS),
    *(["student", "out_n", f"{name}.ipynb", "--nbgrader"] for name in ("annotation", "bare")),
    ["progress", "--lessons", "."],
    ["bundle", "out.zip", "--lessons", "."],
    ["bundle", "out.tar.gz", "annotation.ipynb", "bare.ipynb", "--lessons", "."],
    ["course", "out", "--lessons", "run0"],
    ["doctor"],
    ["data"],
    ["teachers"],
]


def test_every_command_reads_it_and_ends_in_a_sentence(folder):
    """``kdlab`` of the hands raises what a command raises: that would be a traceback."""
    for words in COMMANDS:
        code, told = kdlab(*words)
        assert "Traceback" not in told, words
        assert code in (0, 1), (words, told)
        assert words[0] != "run" or code == 1, (words, told)
        assert not list(folder.rglob("canary")), words


def test_the_module_does_not_import_from_where_one_stands(folder):
    (folder / "typer.py").write_text(TOUCH)
    (folder / "pathlib.py").write_text(TOUCH)
    shutil.rmtree(folder / "kernels")
    (folder / "kdlab.py").unlink()  # Python itself finds this one, before a line of ours
    environment = os.environ | {"PYTHONPATH": str(Path(student.__file__).parents[2])}
    environment.pop("PYTHONSAFEPATH", None)
    done = subprocess.run([sys.executable, "-m", "kdlab", "--version"], env=environment, timeout=60)
    assert done.returncode == 0


# --- types of parameters, without evaluation


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("int", int), ("float", float), ("str", str), ("bool", bool), ("None", None),
        ("list[int]", list[int]), ("str | None", str | None), ("'float'", float),
        ("Optional[str]", str | None), ("typing.Union[int, str]", int | str),
        ("tuple[int, ...]", tuple[int, ...]), ("list[list[float]]", list[list[float]]),
        ("int | float | None", int | float | None), ("dict[str, int]", dict[str, int]),
    ],
)  # fmt: skip
def test_annotations_are_read_by_name(text, kind):
    tree = parameters.parse(f"x: {text} = 1")
    assert parameters.type_of(parameters.annotated(tree)["x"].annotation) == kind


# --- models


@pytest.fixture(scope="module")
def model_and_data():
    torch.manual_seed(0)
    x, y = np.random.default_rng(0).random((8, 4, 4)).astype("float32"), np.arange(8) % 2
    data = datasets.from_arrays(x, y, x, y)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval(), data


def changed(path, change, extra=()):
    """Write an exported program anew with its model.json changed and more files in it."""
    stream = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(stream, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("models/model.json"):
                content = json.dumps(change(json.loads(content))).encode()
            new.writestr(entry, content)
        for name, content in extra:
            new.writestr(f"{old.namelist()[0].split('/')[0]}/{name}", content)
    path.write_bytes(stream.getvalue())
    return path


def set_guard(model):
    return model | {"guards_code": ["__import__('os').system('touch canary') == 0"]}


def set_size(model):
    """SymPy evaluates the texts of sizes."""
    text = json.dumps(model)
    assert "Symbol('s" in text
    return json.loads(
        text.replace("Symbol('s", "__import__('os').system('touch canary') + Symbol('s")
    )


def set_target(model):
    """Functions are looked up by name, from ``torch`` on."""
    node = model["graph_module"]["graph"]["nodes"][0]
    words = {"name": "command", "arg": {"as_string": "touch canary"}, "kind": 1}
    node |= {"target": "torch.serialization.os.system", "inputs": [words]}
    return model


def set_file(model):
    node = model["graph_module"]["graph"]["nodes"][0]
    node["target"] = "torch.ops.aten.from_file.default"
    return model


def set_name(model):
    """Names of inputs become Python source."""
    text = json.dumps(model).replace('"inputs"', '"x=__import__(1)"', 1)
    return json.loads(text)


def set_spec(model):
    call = model["graph_module"]["module_call_graph"][0]["signature"]
    call["in_spec"] = call["in_spec"].replace("builtins.dict", "collections.defaultdict")
    return model


@pytest.mark.parametrize(
    "change", [set_guard, set_size, set_target, set_file, set_name, set_spec],
    ids=lambda change: change.__name__,
)  # fmt: skip
def test_a_program_that_would_run_code_is_refused(model_and_data, tmp_path, monkeypatch, change):
    monkeypatch.chdir(tmp_path)
    path = export(model_and_data[0], tmp_path / "m.pt2", model_and_data[1])
    load(path)
    with pytest.raises(ValueError, match=r"m\.pt2 holds .*could run code"):
        load(changed(path, change))
    assert not Path("canary").exists()


def test_a_program_with_a_compiled_library_is_refused(model_and_data, tmp_path):
    path = export(model_and_data[0], tmp_path / "m.pt2", model_and_data[1])
    changed(path, lambda model: model, [("data/aotinductor/model/evil.so", b"\x7fELF")])
    with pytest.raises(ValueError, match=r"evil\.so, which kdlab does not write"):
        load(path)


def resealed(path, proto):
    for entry in proto.metadata_props:
        if entry.key == "digest":
            entry.value = SEAL + OPEN
    path.write_bytes(seal(proto.SerializeToString()))
    return path


def test_onnx_of_strangers(model_and_data, tmp_path, monkeypatch):
    """The seal is no signature: anybody can make one that fits."""
    onnx = pytest.importorskip("onnx")
    monkeypatch.chdir(tmp_path)
    path = export(model_and_data[0], tmp_path / "m.onnx", model_and_data[1])
    whole = path.read_bytes()

    def model():
        return onnx.load_model_from_string(whole)

    proto = model()
    onnx.save(proto, tmp_path / "other.onnx", save_as_external_data=True, location="weights.bin",
              size_threshold=0, all_tensors_to_one_file=True)  # fmt: skip
    proto = onnx.load(tmp_path / "other.onnx", load_external_data=False)
    with pytest.raises(ValueError, match="weights in another file, which its digest does not"):
        load(resealed(path, proto))
    proto = model()
    proto.graph.node[-1].domain = "my.own"
    with pytest.raises(ValueError, match=r"m\.onnx needs the operator my\.own\.\w+"):
        load(resealed(path, proto))
    proto = model()
    proto.graph.node[-1].op_type = "NoSuchThing"
    with pytest.raises(ValueError, match=r"cannot be run by onnxruntime .*NoSuchThing"):
        load(resealed(path, proto))
    proto = model()
    kept = [p for p in proto.metadata_props if p.key != FACTS]
    del proto.metadata_props[:]
    proto.metadata_props.extend(kept)
    with pytest.raises(ValueError, match="lacks the facts shape, classes, parameters, card"):
        load(resealed(path, proto))
    proto = model()
    proto.graph.input[0].name = "x"
    for node in proto.graph.node:
        node.input[:] = ["x" if name == "inputs" else name for name in node.input]
    with pytest.raises(ValueError, match="expected 'inputs' and one output"):
        load(resealed(path, proto))


@torch.library.custom_op("kdlab_test::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2


twice.register_fake(torch.empty_like)


class Custom(nn.Module):
    def forward(self, x):
        return twice(x.flatten(1)[:, :2])


@pytest.mark.parametrize("ending", ["onnx", "pt2"])
def test_an_operator_of_ones_own_is_refused_when_it_is_written(model_and_data, tmp_path, ending):
    with pytest.raises(ValueError, match=r"kdlab_test.+twice.*expected operators of PyTorch's own"):
        export(Custom(), tmp_path / f"m.{ending}", model_and_data[1])
    assert not list(tmp_path.iterdir())


# --- tables and pictures


class Evil:
    def __reduce__(self):
        return os.system, ("touch canary",)


def test_tables_and_pictures_of_strangers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    objects = np.array([Evil()], dtype=object)
    np.savez("evil.npz", x_train=objects, y_train=objects, x_test=objects, y_test=objects)
    with pytest.raises(ValueError, match="cannot be read as plain numbers"):
        datasets.load("evil.npz")
    started = []
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: started.append(a))
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n(canary) (w) file\n"
    for name in ("cat", "dog"):
        Path("pets", name).mkdir(parents=True)
        for number in range(4):
            Path("pets", name, f"{number}.png").write_bytes(eps)
    with pytest.raises(ValueError, match="is no whole picture"):
        datasets.load("pets")
    assert not started and not Path("canary").exists(), "a PostScript was run"


def test_a_name_with_a_dollar_is_no_formula(tmp_path):
    for t in (1.0, 2.0):
        keep(tmp_path, {"temperature": t}, [{"name": r"$\frac{$", "value": t}])
    table = gathering.gather(tmp_path)
    with matplotlib.rc_context(report_files.AS_TEXT):
        (figure,) = report.figures(table)
        assert r"\frac{$" in report_page.inline_svg(figure, 0)


def test_a_number_that_no_axis_can_show_costs_its_own_figure_only(tmp_path):
    for t in (1.0, 2.0):
        records = [{"name": "huge", "value": 1e308 * (-1) ** t}, {"name": "accuracy", "value": t}]
        keep(tmp_path, {"temperature": t}, records)
    (figure,) = report.figures(gathering.gather(tmp_path))
    assert plots.alt_text(figure).startswith("Accuracy over temperature")


def test_a_progress_line_is_no_html():
    assert "<img" not in Progress(1, "<img src=x onerror=alert(1)>.npz")._line()
