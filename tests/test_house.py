"""The house: the conda environment follows pyproject, the README's commands and files exist."""

from __future__ import annotations

import re
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from sparsity.commands.app import run

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _requirements() -> set[str]:
    project = PYPROJECT["project"]
    extras = project["optional-dependencies"]
    return {*project["dependencies"], *extras["notebooks"], *extras["tables"], *extras["dev"]}


def _differences(conda: dict[str, object]) -> set[str]:
    """Return requirements that one of the two files lacks; sam2 and torch are installed apart."""
    listed = next(d for d in conda["dependencies"] if isinstance(d, dict))["pip"]
    apart = {"sam2==1.1.0", "torch>=2.5.1", "torch==2.13.0", "wheel", "setuptools>=77"}
    return (set(listed) ^ _requirements()) - apart


def test_conda_environment_follows_pyproject() -> None:
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    assert _differences(conda) == set()
    assert f"python{PYPROJECT['project']['requires-python']}" in conda["dependencies"]
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    torch_pin = re.search(r"^torch==.*$", pins, re.M).group()
    assert torch_pin in str(conda)


def test_a_missing_requirement_is_noticed() -> None:
    conda = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    listed = next(d for d in conda["dependencies"] if isinstance(d, dict))["pip"]
    listed.remove("tqdm>=4.66.1")
    assert _differences(conda) == {"tqdm>=4.66.1"}


def test_the_first_line_says_whose_work_it_is() -> None:
    first = next(line for line in README.splitlines() if line and not line.startswith("#"))
    assert "independent implementation" in first
    assert "not affiliated with the authors" in first


PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/**/*.md", "notebooks/*.md", "sparsity/demo/*.md")
    for path in ROOT.glob(pattern)
)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_a_page_links_to_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!http)([^)#]+)", text) + re.findall(r'src="([^"]+)"', text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_the_readme_leads_to_every_page() -> None:
    links = set(re.findall(r"\]\((?!http)([^)#]+)", README))
    pages = {page for page in PAGES if re.fullmatch(r"docs/[^/]+\.md|sparsity/.*", page)}
    assert len(pages) >= 6 and pages - links == set()


def _readme_commands() -> list[list[str]]:
    text = README.replace("\\\n", " ")
    return [line.split() for line in re.findall(r"^efficient-sam2 .*$", text, re.M)]


@pytest.mark.parametrize("words", _readme_commands(), ids=" ".join)
def test_commands_in_the_readme_exist_with_their_options(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    names = [w for w in words[1:3] if re.fullmatch(r"[a-z]+", w)]
    group = names if names[0] == "profile" else names[:1]
    assert run([*group, "--help"]) == 0
    said = capsys.readouterr().out
    for word in words:
        if word.startswith("--"):
            assert word in said


def test_python_in_the_readme_imports_what_exists() -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, re.S)
    assert blocks
    for block in blocks:
        compile(block, "README.md", "exec")
        for module, names in re.findall(r"^from (\w+) import (.*)$", block, re.M):
            for name in names.split(", "):
                assert hasattr(import_module(module), name), f"{module}.{name}"


def test_make_targets_in_the_readme_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make ([a-z]+)", README, re.M)) | set(
        re.findall(r"`make ([a-z]+)`", README)
    )
    assert {"demo", "test"} <= targets
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.M)


def test_the_console_script_is_there() -> None:
    assert PYPROJECT["project"]["scripts"] == {"efficient-sam2": "sparsity.commands.app:main"}
    assert PYPROJECT["project"]["license"] == "Apache-2.0 AND CC-BY-NC-4.0"
    for package in ("probes", "sparsity", "figures"):
        assert (ROOT / package / "py.typed").is_file()
        assert (ROOT / package / "__init__.py").is_file()
