"""The pages of docs/ are built without a warning, and hold every command, option and field that the code has."""

from __future__ import annotations

import ast
import importlib
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec
import pytest
import typer.testing
from tests.project.pages import DOCS, GENERATED, PAGES, ROOT, blocks

from devit_contract.artefacts.fleet import Fleet
from devit_edge_agent.config import AgentConfig
from devit_pipeline.cli import COMMANDS, app
from schema import structs_within

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SPHINX = [sys.executable, "-m", "sphinx", "--fail-on-warning", "--keep-going", "--nitpicky", "-q", "-b", "html"]
OF_THE_PACKAGE = {"_File"}
"""Structs of data that are part of this package and nobody writes."""


class Site:
    """The built pages."""

    def __init__(self, folder: Path) -> None:
        self.html = folder / "html"
        self.trees = folder / "trees"
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        command = [*SPHINX, "-d", str(self.trees), str(DOCS), str(self.html)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False, env=environment)
        assert done.returncode == 0, done.stderr

    def sections(self, page: str) -> dict[str, str]:
        """All sections of a page, by each name that links may use; their own text and tables, one line a row."""
        from docutils import nodes

        tree = pickle.loads((self.trees / f"{page}.doctree").read_bytes())
        found = {}
        for section in tree.findall(nodes.section):
            parts = [child for child in section.children if not isinstance(child, nodes.section)]
            rows = [row for part in parts for row in part.findall(nodes.row)]
            cells = ["\t".join(" ".join(entry.astext().split()) for entry in row.children) for row in rows]
            text = "\n".join([part.astext() for part in parts] + cells)
            found |= dict.fromkeys(section["ids"], text)
        return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    return Site(tmp_path_factory.mktemp("site"))


def test_every_page_is_built_and_every_link_inside_leads_somewhere(site: Site) -> None:
    """Sphinx itself says so, as its warnings are errors; that it would is the next test."""
    assert {page.stem for page in DOCS.glob("*.md")} == {page.stem for page in site.html.glob("*.html")} - {
        "genindex",
        "search",
    }


def test_a_link_to_nowhere_would_be_found(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text('extensions = ["myst_parser"]\nmyst_heading_anchors = 4\n')
    (tmp_path / "index.md").write_text("# One\n\n[a](no.md), [b](index.md#two), [c](#three)\n")
    done = subprocess.run([*SPHINX, str(tmp_path), str(tmp_path / "html")], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert all(target in done.stderr for target in ("no.md", "two", "three"))


def test_the_pages_load_nothing_from_elsewhere(site: Site) -> None:
    for page in site.html.glob("*.html"):
        loaded = re.findall(r"<(?:script|img|link)[^>]*?(?:src|href)=\"([^\"]+)\"", page.read_text())
        assert [target for target in loaded if urlsplit(target).netloc] == [], page


def test_no_page_shows_marks_that_should_have_become_something(site: Site) -> None:
    for page in site.html.glob("*.html"):
        assert not re.search(r":::|```|\{(?:important|note|eval-rst)\}|generated: ", page.read_text()), page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_stands_on_a_page_is_what_the_code_says_now(page: Path) -> None:
    """So that the repository itself can be read, as it is; make docs writes it anew."""
    assert page.read_text() == GENERATED["refreshed"](page.read_text()), "run make docs, or python docs/generated.py"


def test_names_of_places_on_a_page_are_unambiguous() -> None:
    """Links inside a page lead to the first heading of that name, wherever the page is read."""
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
        assert len(slugs) == len(set(slugs)), page
        assert set(re.findall(r"\]\(#([\w-]+)\)", text)) <= set(slugs), page


def test_links_to_elsewhere_are_well_formed() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\((\w+:[^)]+)\)", page.read_text()):
            parts = urlsplit(target)
            assert parts.scheme == "https", target
            assert "." in parts.netloc, target


def command_names() -> Iterator[str]:
    """Each command and each command below it."""
    for name in COMMANDS:
        yield name
        yield from (f"{name} {child}" for child in getattr(GENERATED["command_line"](name), "commands", {}))


def test_every_option_that_help_shows_is_on_the_page(site: Site) -> None:
    sections = site.sections("commands")
    wide = {"COLUMNS": "200", "NO_COLOR": "1"}
    missing = []
    for words in command_names():
        shown = typer.testing.CliRunner().invoke(app, [*words.split(), "--help"], env=wide).output
        options = re.findall(r"^│[ *]+(--\S+(?:[ ,/]+--\S+)*)", shown, re.MULTILINE)
        names = {each for line in options for each in re.findall(r"--[\w-]+", line)}
        assert "--help" in names, shown
        names -= {"--help", "--install-completion", "--show-completion"}
        section = sections[f"devit-{words.replace(' ', '-')}"]
        missing += [f"devit {words} {each}" for each in sorted(names) if each not in section]
    assert missing == []


def test_every_program_of_the_package_is_on_the_page(site: Site) -> None:
    text = "\n".join(site.sections("commands").values())
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert [script for script in scripts if script not in text] == []


def structs_read_from_files() -> Iterator[type[msgspec.Struct]]:
    """Find what the code passes to ``read_json``, ``read_toml`` and ``convert`` as the struct to read."""
    for path in sorted(ROOT.glob("*/devit*/**/*.py")):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts[1:])
        for node in ast.walk(ast.parse(path.read_text())):
            is_reader = isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
            if is_reader and node.func.id in ("read_json", "read_toml", "convert"):  # type: ignore[attr-defined]
                kind = node.args[2 if node.func.id == "convert" else 1]  # type: ignore[attr-defined]
                if isinstance(kind, ast.Name) and kind.id not in (*OF_THE_PACKAGE, "kind"):
                    yield getattr(importlib.import_module(module), kind.id)


def test_every_field_of_every_file_that_is_read_is_on_the_page(site: Site) -> None:
    sections = site.sections("formats")
    read = set(structs_read_from_files())
    assert {Fleet, AgentConfig} < read
    for struct in {inner for outer in read for inner in structs_within(outer)}:
        section = sections[GENERATED["anchor"](struct)]
        for field in msgspec.structs.fields(struct):
            assert f"\n{field.encode_name}\t" in section, f"{struct.__name__}.{field.name}"


@pytest.mark.parametrize(("name", "struct"), [("fleet.toml", Fleet), ("agent.toml", AgentConfig)])
def test_pieces_of_configuration_on_the_pages_have_fields_that_are_read(
    name: str, struct: type[msgspec.Struct]
) -> None:
    pieces = [text for page in PAGES for text in blocks(page, "toml") if text.startswith(f"# {name}\n")]
    assert pieces
    for text in pieces:
        tables = tomllib.loads(text)
        assert sorted(surplus(tables, struct)) == [], text


def test_every_piece_of_configuration_says_of_which_file_it_is() -> None:
    for page in PAGES:
        for text in blocks(page, "toml"):
            assert text.splitlines()[0] in ("# fleet.toml", "# agent.toml"), page


def surplus(tables: dict[str, Any], struct: type[msgspec.Struct]) -> Iterator[str]:
    """Find keys that a struct does not have, in the tables below it too."""
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(struct)}
    yield from tables.keys() - fields.keys()
    for key in tables.keys() & fields.keys():
        inner = next((each for each in structs_within(fields[key])), None)
        for table in tables[key] if isinstance(tables[key], list) else [tables[key]]:
            if inner is not None:
                yield from surplus(table, inner)
