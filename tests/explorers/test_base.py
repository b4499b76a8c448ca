"""The base class: first frame, Python and browser as drivers, errors, what a notebook stores."""

import base64
import io

import ipywidgets as widgets
import numpy as np
import pytest
from PIL import Image

from kdlab.explorers import Explorer

VIEW = "application/vnd.jupyter.widget-view+json"


class Inverse(Explorer):
    """1/x as one bar; fails at 0."""

    def __init__(self, **options):
        self.computed = 0
        slider = widgets.IntSlider(1, 0, 5, description="the x")
        log = widgets.FloatLogSlider(1.0, base=2.0, min=-2, max=4, description="scale")
        kind = widgets.Dropdown(options=["up", "down"], description="kind <b>")
        super().__init__({"x": slider, "scale": log, "kind": kind}, size=(4, 2), **options)

    def compute(self, state):
        self.computed += 1
        sign = 1 if state["kind"] == "up" else -1
        return sign * state["scale"] / state["x"]

    def draw(self, figure, result):
        figure.clear()
        figure.subplots().bar([0], [result])

    def describe(self, result):
        return f"y = {result:.2f} <&>"


def from_browser(control, value):
    """What ipywidgets gets from the front end when somebody moves a control."""
    state = {"method": "update", "state": {"value": value}, "buffer_paths": []}
    control._handle_msg({"content": {"data": state}, "buffers": []})


@pytest.fixture
def explorer():
    return Inverse(goal="Find <1>.")


def test_first_frame_is_there_at_once(explorer):
    assert explorer.result == 1.0 and explorer.computed == 1
    assert Image.open(io.BytesIO(explorer.picture.value)).size == (400, 200)
    assert "y = 1.00 &lt;&amp;&gt;" in explorer.readout.value
    assert repr(explorer) == "<Inverse y = 1.00 <&>>"


def test_css_classes_goal_and_layout(explorer):
    classes = {name: set(c._dom_classes) for name, c in explorer.controls.items()}
    assert all(f"kd-{name}" in found for name, found in classes.items())
    goal, row, picture, readout, message = explorer.children
    assert "Find &lt;1&gt;." in goal.value
    assert row.layout.flex_flow == "row wrap"
    assert picture.layout.width == "400px" and "100%" in picture.layout.max_width
    for part, name in ((picture, "picture"), (readout, "readout"), (message, "message")):
        assert f"kd-{name}" in part._dom_classes
    assert len(Inverse().children) == 4  # no goal, no empty line


def test_set_moves_several_controls_draws_once_and_gives_the_result(explorer):
    before = explorer.picture.value
    assert explorer.set(x=4, kind="down", scale=2) == -0.5
    assert explorer.computed == 2
    assert explorer.picture.value != before
    assert explorer.state == {"x": 4, "scale": 2.0, "kind": "down"}
    assert repr(explorer) == "<Inverse y = -0.50 <&>>"


@pytest.mark.parametrize(
    ("values", "match"),
    [
        ({"scael": 2}, "unknown control 'scael' .did you mean 'scale'... known: x, scale, kind"),
        ({"x": 9}, "x=9 is not possible; expected a whole number from 0 to 5"),
        ({"x": 2.5}, "x=2.5 is not possible"),
        ({"scale": 400}, "scale=400 is not possible; expected from 0.25 to 16"),
        ({"scale": "big"}, "scale='big' is not possible"),
        ({"x": 3, "kind": "left"}, "kind='left' is not possible; expected one of up, down"),
    ],
)
def test_set_refuses_what_ipywidgets_would_clamp_or_round(explorer, values, match):
    before, picture = explorer.state, explorer.picture.value
    with pytest.raises(ValueError, match=match):
        explorer.set(**values)
    assert explorer.state == before and explorer.picture.value == picture
    explorer.controls["x"].value = 2  # it still listens
    assert explorer.result == 0.5


def test_python_moves_a_control_directly(explorer):
    explorer.controls["x"].value = 2
    assert explorer.result == 0.5 and "0.50" in explorer.readout.value


def test_browser_moves_a_control(explorer):
    before = explorer.picture.value
    from_browser(explorer.controls["x"], 5)
    assert explorer.result == 0.2 and explorer.picture.value != before
    from_browser(explorer.controls["kind"], "up")
    from_browser(explorer.controls["scale"], 4.0)
    assert explorer.result == 0.8


@pytest.mark.parametrize("how", ["set", "value"])
def test_error_raises_when_python_drives_and_is_shown(explorer, how):
    with pytest.raises(ZeroDivisionError):
        if how == "set":
            explorer.set(x=0)
        else:
            explorer.controls["x"].value = 0
    assert "ZeroDivisionError: " in explorer.message.value


def test_error_in_the_browser_is_shown_and_the_last_good_frame_stays(explorer):
    good = explorer.picture.value, explorer.readout.value, repr(explorer), explorer.result
    from_browser(explorer.controls["x"], 0)
    assert "ZeroDivisionError: " in explorer.message.value
    assert (explorer.picture.value, explorer.readout.value, repr(explorer), explorer.result) == good
    from_browser(explorer.controls["x"], 2)
    assert "ZeroDivisionError" not in explorer.message.value
    assert explorer.result == 0.5


def test_error_in_the_browser_does_not_reach_ipywidgets_which_would_print_it(explorer):
    explorer.controls["x"].set_state({"value": 0})  # what _handle_msg calls, without its net
    assert "ZeroDivisionError: " in explorer.message.value


def test_python_raises_again_after_an_error_in_the_browser(explorer):
    from_browser(explorer.controls["x"], 0)
    explorer.controls["x"].value = 1
    with pytest.raises(ZeroDivisionError):
        explorer.controls["x"].value = 0


def test_error_text_is_escaped():
    class Angry(Inverse):
        def compute(self, state):
            if state["x"] == 3:
                raise RuntimeError("<script>")
            return super().compute(state)

    explorer = Angry()
    from_browser(explorer.controls["x"], 3)
    assert "&lt;script&gt;" in explorer.message.value
    assert "<script>" not in explorer.message.value


def test_error_in_the_first_frame_raises():
    class Never(Inverse):
        def draw(self, figure, result):
            raise RuntimeError("no pen")

    with pytest.raises(RuntimeError, match="no pen"):
        Never()


def test_stored_output_has_widget_picture_and_numbers(explorer):
    explorer.set(x=2)
    data, metadata = explorer._repr_mimebundle_()
    assert set(data) == {VIEW, "image/png", "text/plain"}
    assert data[VIEW]["model_id"] == explorer.model_id
    stored, live = (
        np.asarray(Image.open(io.BytesIO(png)).convert("RGB"), dtype=int)
        for png in (base64.b64decode(data["image/png"]), explorer.picture.value)
    )
    assert stored.shape == live.shape
    assert abs(stored - live).mean() < 1  # fewer colours, the same picture
    assert data["text/plain"] == repr(explorer) == metadata["image/png"]["alt"]


def test_ipython_stores_all_three(explorer):
    from IPython.core.formatters import DisplayFormatter

    data, metadata = DisplayFormatter().format(explorer)
    assert {VIEW, "image/png", "text/plain"} <= set(data)
    assert data["text/plain"] == repr(explorer)
    assert metadata["image/png"]["alt"] == repr(explorer)


def test_two_explorers_give_the_same_bytes():
    first, second = Inverse(), Inverse()
    first.set(x=3)
    second.set(x=5)
    second.set(x=3)
    assert first.picture.value == second.picture.value


def test_long_descriptions_are_not_cut_in_repr():
    class Wordy(Inverse):
        def describe(self, result):
            return "word " * 50

    assert len(Wordy()._repr_mimebundle_()[0]["text/plain"]) > 250


@pytest.mark.parametrize("continuous", [True, False])
def test_continuous_decides_when_sliders_fire(continuous):
    explorer = Inverse(continuous=continuous)
    assert explorer.controls["x"].continuous_update is continuous
    assert explorer.controls["scale"].continuous_update is continuous


def test_descriptions_are_never_cut_and_controls_shrink(explorer):
    for control in explorer.controls.values():
        assert control.style.description_width == "initial"
        assert control.layout.max_width == "100%"


@pytest.mark.parametrize("control", [widgets.IntSlider(), widgets.Button(description="go")])
def test_a_control_needs_value_and_description(control):
    with pytest.raises(ValueError, match=r"control 'x' .* needs a value and a description"):
        Explorer({"x": control})
