"""The tables of docs/parameters.md, made from the declaration of every parameter. `make docs` writes the file."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from kandinsky22.request.parameters import PARAMETERS, TASKS, Parameter, Part
from kandinsky22.request.presets import PRESETS
from kandinsky22.request.signatures import declared_type, default_in_words, value_in_words

TITLES: Mapping[Part, str] = {
    "input": "A task's own inputs",
    "source": "Embeddings from elsewhere",
    "run": "The run",
    "prior": "The prior",
    "decoder": "The decoder",
    "output": "What comes out",
}
"""Headings, in the order of the sections."""

HEAD = """\
# Parameters

Made by `make docs` from `runtime/kandinsky22/request/parameters.py`, where every parameter is declared once. Signatures, the command line, JSON and `kandinsky22 show` come from the same declaration.

[Tasks](tasks.md) tells what the tasks do, [Python](python.md) how to call them. An argument that a task does not take is refused.

The command line takes some inputs by place instead of by flag: `prompt` is PROMPT of `generate`, `image` is PICTURE of `variations`, and `images_and_prompts` are `--text` and `--image` of `mix`. `--size WxH` gives `width` and `height` in one. `--batch-size` is 1 where it is not given.
"""  # noqa: E501 - a paragraph of Markdown is one line
PRESETS_HEAD = """\
## Presets

What `preset` sets, of what a task takes. A value that is given beside it wins. The request that results, its JSON and the picture's own record have these values and not the preset's name: they ask for the same when presets change.
"""  # noqa: E501 - a paragraph of Markdown is one line


def markdown() -> str:
    """The whole of docs/parameters.md."""
    sections = [HEAD, "## Tasks\n", _rows(("task", "method", "command", "by position", "returns"), _tasks())]
    for part, title in TITLES.items():
        rows = [_parameter(name, each) for name, each in PARAMETERS.items() if each.part == part]
        sections += [f"## {title}\n", _rows(("parameter", "tasks", "type", "default", "flag", "meaning"), rows)]
    head = ("preset", *(f"`{name}`" for name in next(iter(PRESETS.values()))))
    return "\n".join([*sections, PRESETS_HEAD, _rows(head, _presets())])


def _presets() -> list[Sequence[str]]:
    return [
        (f"`{preset}`", *(value_in_words(value) or PARAMETERS[name].hint for name, value in values.items()))
        for preset, values in PRESETS.items()
    ]


def _tasks() -> list[Sequence[str]]:
    rows: list[Sequence[str]] = []
    for name, task in TASKS.items():
        method = "pipe(…)" if name == "text2img" else f"pipe.{name}(…)"
        inputs = ", ".join(f"`{each}`" for each in task.inputs)
        rows.append(
            (f"`{name}`", f"`{method}`", task.command, inputs, "pictures" if task.makes_pictures else "embeddings")
        )
    return rows


def _parameter(name: str, parameter: Parameter) -> Sequence[str]:
    taking = [each for each, task in TASKS.items() if name in task.parameters()]
    flag = f"`{parameter.flag}`" if parameter.flag else ""
    return f"`{name}`", _taking(taking), _type(name, parameter), _default(name, taking), flag, parameter.help


def _taking(names: Sequence[str]) -> str:
    """Some tasks, in as few words as can be."""
    pictures = [name for name, task in TASKS.items() if task.makes_pictures]
    known = {tuple(TASKS): "all", tuple(pictures): "all that make pictures"}
    return known.get(tuple(names), ", ".join(f"`{name}`" for name in names))


def _type(name: str, parameter: Parameter) -> str:
    """The declared type, and the bounds of numbers."""
    written = declared_type(name)
    text = written if isinstance(written, str) else inspect.formatannotation(written).replace("pathlib.", "")
    bounds = _bounds(parameter.kind.schema)
    return f"`{text}`" + (f", {bounds}" if bounds else "")


def _bounds(schema: Mapping[str, Any]) -> str:
    low, high = (schema.get(key) for key in ("minimum", "maximum"))
    if low is None:
        return ""
    return f"{low} or more" if high is None else f"{low} to {high}"


def _default(name: str, taking: Iterable[str]) -> str:
    """The default in words, and of which tasks where they differ."""
    tasks_by_words: dict[str, list[str]] = {}
    for task in taking:
        words = default_in_words(TASKS[task], name, PARAMETERS[name]) or "None"
        tasks_by_words.setdefault(words, []).append(task)
    if len(tasks_by_words) == 1:
        return next(iter(tasks_by_words))
    return "; ".join(f"{words} in {_taking(tasks)}" for words, tasks in tasks_by_words.items())


def _rows(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
