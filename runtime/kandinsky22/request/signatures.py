"""Signatures of methods that take a task's parameters: what `help` shows, and how arguments are bound.

The signature and the list of arguments in the docstring are made from the declaration in
`kandinsky22.request.parameters`, so that neither is written twice.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from kandinsky22.errors import InputError
from kandinsky22.request.parameters import PARAMETERS, TASKS, TYPES, Parameter, Task

_F = TypeVar("_F", bound=Callable[..., Any])
_WIDTH = 110


def takes(task: str) -> Callable[[_F], _F]:
    """Give a method the signature of the task of that name, and its docstring the list of arguments."""

    def dressed(method: _F) -> _F:
        method.__signature__ = _signature(TASKS[task], method)  # type: ignore[attr-defined]
        method.__doc__ = f"{inspect.cleandoc(method.__doc__ or '')}\n\nArgs:\n{arguments(TASKS[task])}"
        return method

    return dressed


def bind(task: str, positional: Sequence[Any], named: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a call by name.

    Raises TypeError, as Python does, for words that are no parameter of any task, for too many or missing arguments;
    InputError for a parameter that this task does not use.
    """
    its = TASKS[task]
    known = its.parameters()
    if len(positional) > len(its.inputs):
        raise TypeError(
            f"{task} takes {len(its.inputs)} arguments by position, {', '.join(its.inputs)}; name the rest."
        )
    given = dict(zip(its.inputs, positional, strict=False))
    for name in named:
        if name not in PARAMETERS:
            raise TypeError(f"There is no argument {name!r}; expected some of {', '.join(known)}.")
        if name not in known:
            raise InputError(f"{task} does not use {name}; leave it out.")
        if name in given:
            raise TypeError(f"{name} was given twice, by position and by name.")
    missing = [name for name in its.required if name not in given and name not in named]
    if missing:
        raise TypeError(f"{task} needs {' and '.join(missing)}.")
    return {**given, **named}


def arguments(task: Task) -> str:
    """The arguments of a task for a docstring, a paragraph each."""
    paragraphs = (
        f"{name}: {' '.join(filter(None, (parameter.help, parameter.more)))}{_default(task, name)}"
        for name, parameter in task.parameters().items()
    )
    return "\n".join(
        textwrap.fill(each, _WIDTH, initial_indent="    ", subsequent_indent="        ") for each in paragraphs
    )


def default_in_words(task: Task, name: str, parameter: Parameter) -> str:
    """The default of a parameter for readers; "" where it is None and means nothing more."""
    value = task.default(name)
    if name in task.required:
        return "required"
    return parameter.hint or value_in_words(value)


def value_in_words(value: Any) -> str:
    """A parameter's value for readers; "" for None."""
    if isinstance(value, tuple):
        return " ".join(f"{each:g}" for each in value)
    return "" if value is None else str(value)


def declared_type(name: str) -> Any:
    """The type of a parameter as it was written in the declaration: a type, or its text."""
    declared = TYPES[name]
    return getattr(declared, "__forward_arg__", declared)


def _default(task: Task, name: str) -> str:
    words = default_in_words(task, name, PARAMETERS[name])
    return f" ({words})" if words else ""


def _signature(task: Task, method: Callable[..., Any]) -> inspect.Signature:
    own = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for name in task.parameters():
        by_position = name in task.inputs
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD if by_position else inspect.Parameter.KEYWORD_ONLY
        default = inspect.Parameter.empty if name in task.required else task.default(name)
        own.append(inspect.Parameter(name, kind, default=default, annotation=declared_type(name)))
    return inspect.Signature(own, return_annotation=method.__annotations__.get("return", inspect.Signature.empty))
