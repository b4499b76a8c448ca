"""What all explorers share: controls in, one picture and one line of numbers out.

No ``interact`` and no ``Output`` widget: headless runs hang on them now and then. The kernel writes
into ``Image.value`` and ``HTML.value`` instead, which is also faster.
"""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from typing import Any, ClassVar

import ipywidgets as widgets
import matplotlib
from matplotlib.figure import Figure

from kdlab import plots
from kdlab.words import check_known

# The message line carries the style sheet, so that it comes and goes with the explorer.
CSS = """<style>
.kd-explorer { max-width: 100%; }
.kd-explorer .kd-line { color: var(--jp-ui-font-color1, inherit); line-height: 1.45; }
.kd-explorer .kd-error { color: var(--jp-error-color1, #b00020); font-weight: 600; }
.kd-explorer .kd-readout .kd-line { font-variant-numeric: tabular-nums; }
.kd-explorer .kd-names .widget-readout { min-width: 20em; max-width: none; overflow: visible; }
.kd-explorer .kd-picture { background: white; border-radius: 8px; padding: 6px;
  box-sizing: border-box; height: auto; object-fit: contain; }
</style>"""


class Explorer(widgets.VBox):
    """Base class: a subclass gives the controls and says what to compute, draw and tell.

    Implement ``compute`` (pure: the controls' values in, a result out), ``draw`` (the result into
    the figure; keep the artists and change them, which is faster than clearing) and ``describe``
    (one line with the numbers; it is the read-out below the picture, the ``repr``, and what
    notebook tests compare, so round it coarsely). Set what they need before calling
    ``super().__init__``, because the first frame is drawn at once.

    An error while drawing shows in the explorer's message line; it also raises if Python moved the
    control, so that a headless run notices. The last good picture and read-out stay.

    In a stored notebook, on GitHub and in static pages the picture stands in for the widget.

    Args:
        controls: name → ipywidget with a value. Each gets the CSS class ``kd-<name>``.
        goal: what to find out, shown above the controls.
        size: of the picture, in inches.
        continuous: False lets sliders fire on release: for explorers slower than 100 ms a frame.

    Attributes:
        controls: as given.
        result: what ``compute`` gave last.

    Raises:
        ValueError: a control without a value or a description.
    """

    dpi: ClassVar[int] = plots.DPI

    def __init__(
        self,
        controls: Mapping[str, Any],
        *,
        goal: str = "",
        size: tuple[float, float] = (plots.WIDTH, 3.0),
        continuous: bool = True,
    ) -> None:
        self.controls = dict(controls)
        self.result: Any = None
        self.figure = plots.new_figure(width=size[0], height=size[1])
        self._told = ""
        self._browser_messages = 0
        self._setting = False
        width = f"{round(size[0] * self.dpi)}px"
        self.picture = widgets.Image(
            format="png", layout=widgets.Layout(width=width, max_width="calc(100% - 4px)")
        ).add_class("kd-picture")
        self.readout = widgets.HTML().add_class("kd-readout")
        self.message = widgets.HTML(CSS).add_class("kd-message")
        for name, control in self.controls.items():
            self._adopt(name, control, continuous)
        row = widgets.Box(
            list(self.controls.values()),
            layout=widgets.Layout(flex_flow="row wrap", align_items="center"),
        )
        top = [widgets.HTML(_line(goal)).add_class("kd-goal")] if goal else []
        super().__init__([*top, row, self.picture, self.readout, self.message])
        self.add_class("kd-explorer")
        self._frame()

    def compute(self, state: dict[str, Any]) -> Any:
        """Return the result for the controls' values. Pure: no widget, no figure, no memory."""
        raise NotImplementedError

    def draw(self, figure: Figure, result: Any) -> None:
        """Put the result into the figure, which keeps its axes from frame to frame."""
        raise NotImplementedError

    def describe(self, result: Any) -> str:
        """Return one line with the numbers that the picture shows."""
        raise NotImplementedError

    @property
    def state(self) -> dict[str, Any]:
        """The controls' values by name."""
        return {name: control.value for name, control in self.controls.items()}

    def set(self, **values: Any) -> Any:
        """Move controls from Python, draw once, and return the result.

        Raises:
            ValueError: no such control, or a value that it cannot take.
        """
        for name in values:
            check_known("control", name, self.controls)
        before = self.state
        self._setting = True
        try:
            for name, value in values.items():
                self._move(name, value)
        except ValueError:
            for name, value in before.items():
                self.controls[name].value = value
            raise
        finally:
            self._setting = False
        self._frame()
        return self.result

    def _move(self, name: str, value: Any) -> None:
        """Set one control; ipywidgets clamps and rounds in silence, we do not."""
        control = self.controls[name]
        try:
            control.value = value
            taken = bool(control.value == value)
        except Exception:  # traitlets and ipywidgets raise several types here
            taken = False
        if not taken:
            raise ValueError(f"{name}={value!r} is not possible; expected {_possible(control)}")

    def _adopt(self, name: str, control: Any, continuous: bool) -> None:
        """Label a control, listen to it, and mark what comes from the browser."""
        if not hasattr(control, "value") or not getattr(control, "description", ""):
            kind = type(control).__name__
            raise ValueError(f"control {name!r} ({kind}) needs a value and a description")
        control.add_class(f"kd-{name}")
        if hasattr(control.style, "description_width"):
            control.style.description_width = "initial"  # a long description is never cut
        if isinstance(control.layout, widgets.Layout) and control.layout.width is None:
            control.layout.width = "330px"
            control.layout.max_width = "100%"
        if hasattr(control, "continuous_update"):
            control.continuous_update = continuous
        from_browser = control.set_state

        def set_state(state: dict[str, Any]) -> None:
            self._browser_messages += 1
            try:
                from_browser(state)
            finally:
                self._browser_messages -= 1

        # A message of the browser reaches a widget through set_state, and nothing else does.
        control.set_state = set_state
        control.observe(self._on_change, names="value")

    def _on_change(self, change: Any) -> None:
        if self._setting:
            return
        try:
            self._frame()
        except Exception:
            if not self._browser_messages:
                raise

    def _frame(self) -> None:
        """Compute, draw and tell; on an error say so, keep what was there, and raise."""
        try:
            result = self.compute(self.state)
            with matplotlib.rc_context(plots.STYLE):
                self.draw(self.figure, result)
            told, picture = self.describe(result), plots.png(self.figure, self.dpi)
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            self.message.value = CSS + _line(text, "kd-line kd-error")
            raise
        self.result, self._told = result, told
        self.picture.value = picture
        self.readout.value = _line(told)
        if self.message.value != CSS:
            self.message.value = CSS

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._told}>"

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return widget, picture and text in one output: each viewer takes the best it knows."""
        data = dict(super()._repr_mimebundle_(**kwargs) or {})
        data["image/png"] = base64.b64encode(plots.png(self.figure, self.dpi, colors=128)).decode()
        data["text/plain"] = repr(self)
        return data, {"image/png": {"alt": repr(self)}}


def _line(text: str, css: str = "kd-line") -> str:
    return f'<div class="{css}">{html.escape(text)}</div>' if text else ""


def _possible(control: Any) -> str:
    """Say which values a control takes."""
    if hasattr(control, "options"):
        values = (option[1] if isinstance(option, tuple) else option for option in control.options)
        return "one of " + ", ".join(map(str, values))
    if hasattr(control, "min"):
        base = getattr(control, "base", None)
        low, high = (base**b if base else b for b in (control.min, control.max))
        whole = "a whole number " if isinstance(control.value, int) else ""
        return f"{whole}from {low:g} to {high:g}"
    return f"a value like {control.value!r}"
