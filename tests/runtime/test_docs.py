"""What the documents say holds: links, paths, names, commands, flags, snippets, and the tables of parameters."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import logging
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from kandinsky22 import backends
from kandinsky22.cli import main as cli
from kandinsky22.request import table
from kandinsky22.request.parameters import PARAMETERS
from kandinsky22.request.presets import PRESETS

ROOT = Path(__file__).parents[2]
FOLDERS = ("docs", "benchmarks", "checkpoints")
DOCUMENTS = sorted(
    [
        *ROOT.glob("*.md"),
        ROOT / "engines" / "README.md",
        *(each for top in FOLDERS for each in (ROOT / top).rglob("*.md")),
    ]
)
"""Every document of the repository; bundles and environments, which may be large, are not looked through."""
SOURCES = [
    path for top in ("runtime", "export", "benchmarks", "checkpoints", "tests") for path in (ROOT / top).rglob("*.py")
]
RUNTIME = ROOT / "runtime" / "kandinsky22"
HISTORY = ROOT / "CHANGELOG.md"
"""It names what is gone."""
MOST_WORDS = 900

documents = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def text_of(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def fenced(document: Path, *languages: str) -> list[str]:
    """Blocks of code in some languages, "" for those that name none."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text_of(document), re.DOTALL | re.MULTILINE)
    return [block for language, block in blocks if language in languages]


def prose(document: Path) -> str:
    """A document without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text_of(document), flags=re.DOTALL | re.MULTILINE)


def spans(document: Path) -> list[str]:
    """What stands in prose as code."""
    return re.findall(r"`([^`\n]+)`", prose(document))


def anchors(document: Path) -> set[str]:
    """Where links into a document may lead, as GitHub names its headings."""
    headings = re.findall(r"^#+ (.*)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@documents
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(document)):
        if re.match(r"\w+:", target):
            continue
        place, _, anchor = target.partition("#")
        found = (document.parent / place).resolve() if place else document
        assert found.is_relative_to(ROOT), target
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


@documents
def test_every_path_of_a_module_names_one_file(document: Path) -> None:
    """From the root, the document's folder, the runtime, or from as far down as there is one file of that name."""
    if document == HISTORY:
        return
    for path in re.findall(r"(?<![\w/.:-])[\w./-]+\.py\b", text_of(document)):
        named = [source for source in SOURCES if f"/{source.relative_to(ROOT)}".endswith(f"/{path}")]
        beside = any((folder / path).is_file() for folder in (document.parent, ROOT, RUNTIME))
        assert beside or len(named) == 1, f"{path} names {len(named)} files"


@documents
def test_every_name_of_the_packages_can_be_imported(document: Path) -> None:
    if document == HISTORY:
        return
    for name in re.findall(
        r"(?<![\w./-])(?:kandinsky22|kandinsky22_export|benchmarks)(?:\.\w+)+(?![\w/])", text_of(document)
    ):
        module, attributes = name, list[str]()
        while not is_module(module):
            module, _, last = module.rpartition(".")
            attributes.insert(0, last)
        value = importlib.import_module(module) if attributes else None
        for attribute in attributes:
            assert hasattr(value, attribute), name
            value = getattr(value, attribute)


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def test_the_readme_is_short() -> None:
    assert len(text_of(ROOT / "README.md").split()) <= MOST_WORDS


def commands() -> list[tuple[Path, list[str]]]:
    """Command lines in blocks of code: which document, and its words without settings of the environment before it."""
    found = []
    for document in DOCUMENTS:
        for block in fenced(document, "sh", ""):
            for line in block.replace("\\\n", " ").splitlines():
                if "kandinsky22" in line or line.startswith(("make", "python")):
                    words = shlex.split(re.sub(r"^\w[\w ]*: ", "", line), comments=True)
                    while words and re.match(r"[A-Z_]+=|/usr/bin/time$|-v$", words[0]):
                        del words[0]
                    found.append((document, words))
    return [(document, words) for document, words in found if words]


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = cli.Parser(prog=f"kandinsky22 {command}")
    importlib.import_module(cli.ELSEWHERE.get(command, f"kandinsky22.cli.{command}")).add_arguments(parser)
    parser.add_argument("-v", "--verbose", action="count")
    return parser


def refusal(parser: argparse.ArgumentParser, words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Why a parser refuses a command line, "" where it does not."""
    try:
        parser.parse_intermixed_args(words)
    except SystemExit:
        return capsys.readouterr().err
    return ""


def test_every_command_line_is_one_that_the_program_takes(capsys: pytest.CaptureFixture[str]) -> None:
    counted = dict.fromkeys(("kandinsky22", "kandinsky22-export", "make", "python"), 0)
    for document, (program, *words) in commands():
        if program == "kandinsky22":
            words = [word for word in words if word not in ("-v", "-vv")]
            assert not refusal(parser_of(words[0]), words[1:], capsys), f"{document.name}: {words}"
        elif program == "kandinsky22-export":
            exporter = importlib.import_module("kandinsky22_export.cli")
            assert not refusal(exporter._parser(), words, capsys), f"{document.name}: {words}"
        elif program == "make":
            targets = re.findall(r"^([a-z-]+):", text_of(ROOT / "Makefile"), re.MULTILINE)
            assert {word for word in words if "=" not in word} <= set(targets), f"{document.name}: {words}"
        elif program == "python":
            module = ROOT / (words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0])
            assert module.is_file() or (words[0] == "-m" and is_module(words[1])), f"{document.name}: {words}"
        else:
            continue
        counted[program] += 1
    assert min(counted.values()) > 0
    assert counted["kandinsky22"] > 8


@documents
def test_commands_and_flags_in_sentences_exist(document: Path) -> None:
    known = set(re.findall(r'"(--[a-z][\w-]*)"', "".join(text_of(source) for source in SOURCES)))
    known |= {option for action in parser_of("serve")._actions for option in action.option_strings}
    for span in spans(document):
        flags = [word.partition("=")[0] for word in re.findall(r"(?<!\S)--[a-z][\w-]*\S*", span)]
        (first, *words) = span.removeprefix("kandinsky22 ").split()
        words = [first, *words]
        while words and words[0] in ("-v", "-vv"):
            del words[0]
        if words and words[0] in cli.COMMANDS:
            its = {option for action in parser_of(words[0])._actions for option in action.option_strings}
            assert set(flags) <= its, span
        elif span.startswith("kandinsky22 "):
            assert not words or words[0].isupper() or words[0].startswith("--"), span
        elif span.startswith("--"):
            assert set(flags) <= known, span


def test_the_tables_of_parameters_are_what_is_declared() -> None:
    written = text_of(ROOT / "docs" / "parameters.md")
    assert written == table.markdown(), "run make docs"
    parameters, presets = written.split("## Presets")
    first_cells = re.findall(r"^\| `(\w+)` \| .* \| .* \| .* \| .* \| .* \|$", parameters, re.MULTILINE)
    assert sorted(first_cells) == sorted(PARAMETERS)
    assert re.findall(r"^\| `(\w+)` \|", presets, re.MULTILINE) == list(PRESETS)


def test_pre_commit_runs_what_make_lint_runs() -> None:
    recipe = re.search(r"^lint:.*\n((?:\t.*\n)+)", text_of(ROOT / "Makefile"), re.MULTILINE)
    assert recipe
    linted = re.findall(r"^\t\$\(BIN\)/(.*)$", recipe[1], re.MULTILINE)
    hooks = re.findall(
        r"entry: sh -c '\"\$\{VENV:-\.venv\}/bin/(\w+)\"(.*)'$", text_of(ROOT / ".pre-commit-config.yaml"), re.MULTILINE
    )
    assert [tool + rest for tool, rest in hooks] == linted


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """ONNX Runtime, which compiles nothing, and few steps where a snippet does not say how many."""
    monkeypatch.setattr(backends, "PREFERENCE", ("onnxruntime",))
    for name, steps in (("num_inference_steps", 4), ("prior_num_inference_steps", 3)):
        monkeypatch.setitem(PARAMETERS, name, dataclasses.replace(PARAMETERS[name], default=steps))


@pytest.fixture
def _logging_as_it_was() -> Iterator[None]:
    log, root = logging.getLogger("kandinsky22"), logging.getLogger()
    before, handlers = log.level, list(root.handlers)
    yield
    log.setLevel(before)
    root.handlers[:] = handlers


@pytest.mark.usefixtures("_quick", "_logging_as_it_was")
@pytest.mark.parametrize("name", ["README.md", "docs/python.md"])
def test_snippets_run_in_order(
    name: str, shapes_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "engines").mkdir()
    for bundle in ("shapes", "kandinsky-2.2"):
        (tmp_path / "engines" / bundle).symlink_to(shapes_bundle)
    monkeypatch.chdir(tmp_path)
    snippets = fenced(ROOT / name, "python")
    assert snippets
    names: dict[str, object] = {}
    for number, snippet in enumerate(snippets, 1):
        exec(compile(snippet, f"{name}, snippet {number}", "exec"), names)
    told = [record.getMessage() for record in caplog.records if record.name.startswith("kandinsky22")]
    assert any("loaded" in message or "memory" in message for message in told) == ("getLogger" in snippets[-1])
