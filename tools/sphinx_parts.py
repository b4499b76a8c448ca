"""What Sphinx needs for these pages: formulas without a script, papers as links, plain docstrings.

MathML is drawn by the browser itself, follows the colours of the page and can be read aloud; the
converter comes with docutils. So the pages fetch nothing, and need no LaTeX to be built.
"""

import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import inspect
from sphinx.util.inspect import stringify_signature

ARXIV = re.compile(r"arXiv:?\s?(\d{4}\.\d{4,5})")
SOURCE = re.compile(r"(Sources?): ?(?=\S)")
CODE = re.compile(r"(``.+?``)")
NAME = re.compile(r"(`[^`\n]+`)(?=\w)")
# commands that the converter knows by another name only
SYNONYMS = {r"\\dots\b": r"\\ldots"} | {rf"\\({size})(?=[()])": r"\\\1l" for size in ("big", "Big")}


class Papers(SphinxPostTransform):
    """Make a link of each arXiv number in a text."""

    default_priority = 400

    def run(self, **kwargs: Any) -> None:
        """Replace the numbers that are not part of a link or of code."""
        for text in list(self.document.findall(nodes.Text)):
            if isinstance(text.parent, nodes.reference | nodes.literal | nodes.literal_block):
                continue
            pieces = ARXIV.split(text)
            if len(pieces) == 1:
                continue
            fresh: list[nodes.Node] = []
            for number, piece in enumerate(pieces):
                address = f"https://arxiv.org/abs/{piece}"
                linked = nodes.reference("", f"arXiv:{piece}", refuri=address)
                fresh.append(linked if number % 2 else nodes.Text(piece))
            text.parent.replace(text, fresh)


def mathml(latex: str, block: bool = False) -> str:
    """Return a formula as MathML.

    Raises:
        SphinxError: a command that the converter does not know; better than a formula that is lost.
    """
    for theirs, known in SYNONYMS.items():
        latex = re.sub(theirs, known, latex)
    try:
        return str(tex2mathml(latex.strip(), as_block=block))
    except MathError as error:
        raise SphinxError(f"formula {latex!r}: {error}") from None


def inline_formula(writer: Any, node: nodes.math) -> None:
    writer.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def formula_row(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="formula-row">{mathml(node.astext(), block=True)}</div>')
    raise nodes.SkipNode


def tidy_docstring(
    app: Sphinx, what: str, name: str, obj: object, options: Any, lines: list[str]
) -> None:
    """Make reStructuredText of docstrings that are written to be read in a terminal.

    A paragraph that begins with ``Source:`` becomes a field, beside parameters and errors. Outside
    of code a bar is a bar, and a letter may follow a name in backticks.
    """
    fresh: list[str] = []
    inside = False
    for line in lines:
        pieces = CODE.split(line)
        pieces[::2] = [NAME.sub(r"\1\\ ", piece.replace("|", r"\|")) for piece in pieces[::2]]
        line = "".join(pieces)
        if SOURCE.match(line):
            inside, line = True, SOURCE.sub(r":\1: ", line)
            fresh += [""] if fresh and fresh[-1].strip() else []
        elif not line.strip():
            inside = False
        elif inside:
            line = f"   {line}"
        fresh.append(line)
    lines[:] = fresh


def own_signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str | None, returns: Any
) -> tuple[str, Any] | None:
    """Show what a widget takes; its metaclass hides that behind ``*args, **kwargs``."""
    if what != "class" or signature is None or not signature.startswith("(*args"):
        return None
    own = inspect.signature(obj.__init__, bound_method=True)
    return stringify_signature(
        own, show_return_annotation=False, short_literals=True, unqualified_typehints=True
    ), returns


def setup(app: Sphinx) -> dict[str, bool]:
    """Add these parts to a build."""
    app.add_html_math_renderer("mathml", (inline_formula, None), (formula_row, None))  # type: ignore[arg-type]
    app.add_post_transform(Papers)
    app.connect("autodoc-process-docstring", tidy_docstring, priority=600)  # after napoleon
    app.connect("autodoc-process-signature", own_signature)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
