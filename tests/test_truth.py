"""No model, method or data set is asked whether it is true: that calls its `len`.

A compiled module has none and raises, a container of no layers is false. `is None` asks what is
meant.
"""

import ast
from pathlib import Path

import pytest

import kdlab

PACKAGE = Path(kdlab.__file__).parent
NAMES = {
    *("model", "student", "teacher", "distiller", "pruned", "module", "network", "net"),
    *("nested", "method", "widest", "layer", "head", "gate", "backbone"),
    *("split", "train", "examples"),
}
KINDS = ("nn.Module", "Module", "Distiller", "Gate", "Split", "Data", "Nested")  # in an annotation


def asked(tree):
    """Every expression whose truth is asked."""
    for node in ast.walk(tree):
        if isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
            yield node.test
        elif isinstance(node, ast.BoolOp):
            yield from node.values[:-1]
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            yield node.operand
        elif isinstance(node, ast.comprehension):
            yield from node.ifs
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "bool" and node.args:
            yield node.args[0]


def kinds(tree):
    """Names that are annotated as one of the kinds; `list[...]` and the like of them are not."""
    for node in ast.walk(tree):
        annotation = getattr(node, "annotation", None)
        if annotation is None:
            continue
        parts = [part.strip() for part in ast.unparse(annotation).split("|")]
        if any(part in KINDS for part in parts):
            target = getattr(node, "target", None)
            yield node.arg if isinstance(node, ast.arg) else getattr(target, "id", "")


def plain(tree):
    """Names that are annotated as text, number or the like: these may be asked."""
    simple = {"str", "int", "float", "bool", "None"}
    for node in ast.walk(tree):
        annotation = getattr(node, "annotation", None)
        if isinstance(node, ast.arg) and annotation is not None:
            kind = set(ast.unparse(annotation).split(" | "))
            if kind <= simple or "list" in ast.unparse(annotation).lower():
                yield node.arg


def offences(source):
    tree = ast.parse(source)
    names = (NAMES - set(plain(tree))) | set(kinds(tree))
    for test in asked(tree):
        name = getattr(test, "id", getattr(test, "attr", None))
        if name in names and isinstance(test, ast.Name | ast.Attribute):
            yield f"{test.lineno}: {ast.unparse(test)}"


@pytest.mark.parametrize("folder", sorted(p.name for p in PACKAGE.iterdir() if p.is_dir()))
def test_no_model_method_or_data_set_is_asked_whether_it_is_true(folder):
    found = [
        f"{path.relative_to(PACKAGE)}:{offence}"
        for path in sorted((PACKAGE / folder).rglob("*.py"))
        for offence in offences(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "x = teacher or model",
        "x = a and self.student and b",
        "x = 1 if module else 2",
        "if not distiller: pass",
        "assert pruned",
        "while net: pass",
        "x = [a for a in b if head]",
        "x = bool(teacher)",
        "def f(x: nn.Module | None = None):\n    return x or 1",
        "def f(x: 'Distiller'):\n    return not x",
    ],
)
def test_a_planted_question_is_found(line):
    assert list(offences(line.replace("'", "")))
    assert not list(
        offences(
            line.replace("'", "")
            .replace("teacher or", "teacher is None or")
            .replace("self.student and", "self.student is not None and")
            .replace("if module", "if module is None")
            .replace("not distiller", "distiller is None")
            .replace("assert pruned", "assert pruned is None")
            .replace("net:", "net is None:")
            .replace("if head", "if head is None")
            .replace("bool(teacher)", "bool(teacher is None)")
            .replace("return x or", "return x is None or")
            .replace("not x", "x is None")
        )
    )
