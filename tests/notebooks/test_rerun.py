"""tools/rerun.py: a second run changes no byte, an error keeps the old file."""

import base64
import struct
import zlib

import nbformat
import pytest
import rerun

CELLS = [
    (None, "text", "# Tiny"),
    (None, "code", "import ipywidgets as w\nfrom IPython.display import display"),
    (None, "code", "from matplotlib.figure import Figure\nf = Figure((1, 1)); f.subplots(); f"),
    (
        None,
        "code",
        "bundle = dict(w.IntSlider()._repr_mimebundle_())\n"
        "display({**bundle, 'text/plain': 'a slider'}, raw=True)",
    ),
]


def test_the_second_run_changes_no_byte(write, capsys):
    path = write(CELLS)
    assert rerun.stale(path) != []
    assert rerun.main([str(path)]) == 0
    first, stamp = path.read_bytes(), path.stat().st_mtime_ns
    assert rerun.main([str(path)]) == 0
    assert path.read_bytes() == first and path.stat().st_mtime_ns == stamp
    told = capsys.readouterr().out
    assert "written" in told and "unchanged" in told
    assert rerun.stale(path) == []
    stored = nbformat.read(path, 4)
    assert stored.metadata["kernelspec"]["name"] == "python3" and "widgets" not in stored.metadata
    assert rerun.WIDGET_VIEW not in first.decode()


def test_an_error_keeps_the_old_file_and_names_the_cell(write, capsys):
    path = write([(None, "code", "x = 1"), (None, "code", "raise KeyError('lost')")])
    before = path.read_bytes()
    assert rerun.main([str(path)]) == 1
    told = capsys.readouterr().out
    assert path.read_bytes() == before and "cell 1 raised KeyError: 'lost'" in told


def test_a_slow_cell_is_given_up(write, capsys):
    path = write([(None, "code", "import time; time.sleep(60)")])
    before = path.read_bytes()
    assert rerun.main(["--timeout", "1", str(path)]) == 1
    assert path.read_bytes() == before and "longer than 1 s" in capsys.readouterr().out


@pytest.fixture(scope="module")
def fresh():
    """A lesson as the tool leaves it, without the cost of a kernel."""
    cells = [
        nbformat.v4.new_code_cell("x = 1", execution_count=1),
        nbformat.v4.new_code_cell("x", execution_count=2),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kdlab"] = {"source": rerun.source_hash(notebook)}
    return notebook


def edited(cell):
    cell["source"] = "x + 1"


def renumbered(cell):
    cell["execution_count"] = 5


def with_error(cell):
    cell["outputs"] = [nbformat.v4.new_output("error", ename="E", evalue="", traceback=[])]


def with_widget(cell):
    data = {rerun.WIDGET_VIEW: {"model_id": "a"}, "text/plain": "a"}
    cell["outputs"] = [nbformat.v4.new_output("display_data", data)]


@pytest.mark.parametrize(
    ("edit", "complaint"),
    [
        (edited, "source was changed"),
        (renumbered, "in order"),
        (with_error, "stored output is an error"),
        (with_widget, "widget state"),
    ],
)
def test_what_is_stale_is_found(tmp_path, fresh, edit, complaint, capsys):
    path = tmp_path / "a.ipynb"
    nbformat.write(fresh, path)
    assert rerun.main(["--check", str(path)]) == 0
    notebook = nbformat.read(path, 4)
    edit(notebook.cells[1])
    nbformat.write(notebook, path)
    assert rerun.main(["--check", str(path)]) == 1
    assert complaint in capsys.readouterr().out


def test_only_the_texts_of_a_picture_go():
    def chunk(kind, body):
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    head, pixels, end = chunk(b"IHDR", bytes(13)), chunk(b"IDAT", b"abc"), chunk(b"IEND", b"")
    png = rerun.PNG_START + head + chunk(b"tEXt", b"Software\0x") + pixels + end
    left = base64.b64decode(rerun.without_texts(base64.b64encode(png).decode()))
    assert left == rerun.PNG_START + head + pixels + end
