"""How the code is cut: which module may import which, no circles, and few floors. Read from the imports themselves."""

from __future__ import annotations

import ast
import functools
import tomllib
from pathlib import Path

import pytest

from kandinsky22.version import VERSION

ROOT = Path(__file__).parents[2]
SOURCES = {
    "kandinsky22": ROOT / "runtime",
    "kandinsky22_serve": ROOT / "runtime",
    "kandinsky22_export": ROOT / "export",
}
ORDER = (
    ("cli", "__main__"),
    ("measure",),
    ("pipeline",),
    ("conditioning", "sampling"),
    ("components", "callbacks", "rows"),
    ("request",),
    ("memory",),
    ("backends",),
    ("images",),
    ("bundle",),
    ("schedulers",),
    ("noise",),
    ("checks", "machine", "files", "arrays", "batching", "openvino_core", "schema"),
    ("errors", "version"),
)
"""Rooms and modules of the runtime from the top floor down: each may import what stands beside or below it."""
MOST_FLOORS = 12


def modules(package: str) -> dict[str, Path]:
    found = {}
    for path in (SOURCES[package] / package).rglob("*.py"):
        parts = path.relative_to(SOURCES[package]).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@functools.cache
def imports(package: str) -> dict[str, frozenset[str]]:
    """What each module of a package imports of it, wherever in the file; what only types need does not count."""
    known = modules(package)
    arrows = {}
    for name, path in known.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                node.body = [ast.Pass()]
        targets: set[str] = set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                targets |= {each.name for each in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                within = {f"{node.module}.{each.name}" for each in node.names}
                targets |= {each if each in known else node.module for each in within}
        arrows[name] = frozenset(target for target in targets if target in known and target not in (name, package))
    return arrows


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


@pytest.mark.parametrize("package", SOURCES)
def test_there_is_no_circle(package: str) -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a circle: {' -> '.join((*path, module))}"
        if module not in done:
            for target in sorted(imports(package)[module]):
                # A package's own file may gather what its modules define: they do not import it back.
                visit(target, (*path, module))
            done.add(module)

    for module in imports(package):
        visit(module, ())


def test_no_module_of_the_runtime_imports_upwards() -> None:
    floor = {name: height for height, names in enumerate(reversed(ORDER)) for name in names}
    upwards = [
        f"{module} -> {target}"
        for module, targets in imports("kandinsky22").items()
        for target in targets
        if room(module) and floor[room(target)] > floor[room(module)]
    ]
    assert not upwards


def test_every_module_has_its_place_in_the_order() -> None:
    assert {room(module) for module in modules("kandinsky22")} - {""} == {name for names in ORDER for name in names}


def test_there_are_few_floors() -> None:
    @functools.cache
    def height(module: str) -> int:
        return 1 + max((height(target) for target in imports("kandinsky22")[module]), default=0)

    tallest = max(imports("kandinsky22"), key=height)
    assert height(tallest) <= MOST_FLOORS, tallest


@pytest.mark.parametrize("package", ["kandinsky22", "kandinsky22_serve"])
@pytest.mark.parametrize("other", ["kandinsky22_export", "kandinsky22_serve"])
def test_the_runtime_knows_nothing_of_what_stands_on_it(package: str, other: str) -> None:
    for path in modules(package).values():
        assert package == other or other not in {
            alias.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [n.name for n in node.names])
        }


def test_the_version_is_one() -> None:
    about = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert about["project"]["version"] == VERSION


def test_components_are_named_by_their_bundle_alone() -> None:
    """By its role a component is found, and not by a name: see docs/bundle.md."""
    naming = [path for path in (ROOT / "runtime").rglob("*.py") if '"decoder_step' in path.read_text(encoding="utf-8")]
    naming += [path for path in (ROOT / "benchmarks").rglob("*.py") if '"decoder_step' in path.read_text("utf-8")]
    assert len(naming) <= 3, naming
