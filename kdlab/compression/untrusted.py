"""What an exported file may hold: a stranger's could run code when it is loaded or called.

PyTorch says of ``torch.export.load`` that it is not for files of strangers: it evaluates the
expressions of sizes, executes guards, looks functions up by name and opens compiled libraries. Here
a program is refused unless it holds nothing but what kdlab writes.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

MEMBERS = re.compile(
    r"[^/]+/(data/(weights|constants)/[\w.]+|data/sample_inputs/model\.pt|models/model\.json"
    r"|extra/\w+|archive_format|archive_version|byteorder|version|\.data/[\w.]+)"
)
PLAIN = re.compile(r"[\w.+:\-]*")  # nothing can be called with these letters
CALLED = re.compile(
    r"torch\.ops\.(?!aten\.(save|from_file)\b)(aten|quantized_decomposed|onednn|prims)\.\w+\.\w+"
    r"|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)|torch\.sym_\w+|math\.\w+"
    r"|_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|not_)"
)
SPECS = {None, "builtins.list", "builtins.tuple", "builtins.dict"}
FREE = {
    "metadata",
    "as_string",
    "as_strings",
}  # never evaluated: where code came from, and literals
SIZES = {
    "Symbol", "Integer", "Float", "Rational", "Add", "Mul", "Pow", "Mod", "PythonMod", "FloorDiv",
    "CleanDiv", "CeilDiv", "IntTrueDiv", "FloatTrueDiv", "Max", "Min", "Abs", "Eq", "Ne", "Le",
    "Lt", "Ge", "Gt", "Not", "And", "Or", "ToFloat", "TruncToInt", "L",
}  # fmt: skip
ARITHMETIC = (
    ast.Expression, ast.Compare, ast.BoolOp, ast.UnaryOp, ast.BinOp, ast.Subscript, ast.Load,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop, ast.keyword,
)  # fmt: skip


def strange_member(name: str) -> bool:
    """Say whether a file of an archive is none that kdlab writes, as a compiled library."""
    return not MEMBERS.fullmatch(name)


def strange_program(content: bytes) -> str:
    """Return what a program holds that kdlab does not write, "" if nothing.

    Args:
        content: of ``models/model.json``.

    Raises:
        json.JSONDecodeError, RecursionError: it is damaged.
    """
    return next(_strange(json.loads(content), ""), "")


def _strange(value: Any, key: str) -> Iterator[str]:
    if key in FREE:
        return
    if isinstance(value, dict):
        for name, item in value.items():
            if not PLAIN.fullmatch(name):
                yield name
            yield from _strange(item, name)
    elif isinstance(value, list):
        for item in value:
            yield from _strange(item, key)
    elif isinstance(value, str) and not _is_plain(value, key):
        yield value


def _is_plain(text: str, key: str) -> bool:
    if key in ("expr_str", "guards_code"):
        return _is_arithmetic(text)
    if key in ("in_spec", "out_spec"):
        return all(map(_is_spec, json.loads(text)[1:]))
    if key in ("target", "as_operator"):
        return bool(CALLED.fullmatch(text))
    return bool(PLAIN.fullmatch(text))


def _is_arithmetic(text: str) -> bool:
    """Say whether an expression only computes with sizes: it calls no other function."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return all(map(_is_size, nodes))


def _is_size(node: ast.AST) -> bool:
    match node:
        case ast.Name(id=name):
            return name in SIZES or bool(re.fullmatch(r"[suz]+\d+|true|false|True|False", name))
        case ast.Constant(value=str(text)):
            return text.isidentifier()
        case ast.Constant(value=value):
            return isinstance(value, bool | int | float)
        case ast.Call(func=func):
            return isinstance(func, ast.Name | ast.Attribute)
        case ast.Attribute(attr=name):
            return name in ("size", "stride", "storage_offset")
    return isinstance(node, ARITHMETIC)


def _is_spec(spec: Any) -> bool:
    return spec["type"] in SPECS and all(map(_is_spec, spec["children_spec"]))


def strange_model(proto: Any) -> str:
    """Return what an ONNX model needs that is not in it, or that no kdlab model has; "" if nothing.

    Args:
        proto: an ``onnx.ModelProto``.
    """
    if _is_outside(proto):
        return "weights in another file, which its digest does not cover"
    nodes = (node for part in (proto.graph, *proto.functions) for node in part.node)
    known = {"", "ai.onnx", "com.microsoft", *(f.domain for f in proto.functions)}
    return next(
        (f"the operator {n.domain}.{n.op_type}" for n in nodes if n.domain not in known), ""
    )


def _is_outside(message: Any) -> bool:
    """Say whether a tensor anywhere in a message lies in another file."""
    for field, value in message.ListFields():
        if field.name == "external_data" or (field.name == "data_location" and value == 1):
            return True
        if field.message_type is not None and any(map(_is_outside, _several(value))):
            return True
    return False


def _several(value: Any) -> Any:
    return [value] if hasattr(value, "ListFields") else value
