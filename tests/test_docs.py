"""The pages: their links lead somewhere, their commands parse, and what they name exists."""

import argparse
import ast
import functools
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mnist_ray import __main__, search
from mnist_ray.errors import UserError
from mnist_ray.terminal import flags

REPOSITORY = Path(__file__).parent.parent
LIVING = [
    *REPOSITORY.glob("*.md"),
    *REPOSITORY.glob("docs/*.md"),
    *REPOSITORY.glob("experiments/*.md"),
    *REPOSITORY.glob("experiments/[a-z]*/README.md"),
]
"""The pages that say how things are now. Records stay as they were written."""
RECORDS = [*REPOSITORY.glob("experiments/20*/README.md")]


def name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return FENCED.sub("", page.read_text())


# Links.


def anchors(page: Path) -> set[str]:
    """The anchors that a renderer gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    plain = (re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return {re.sub(r"[^\w -]", "", each).strip().lower().replace(" ", "-") for each in plain}


def dead_links(page: Path) -> Iterator[str]:
    for link in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page))):
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("page", [*LIVING, *RECORDS], ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    assert [*dead_links(page)] == []


def test_dead_links_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A page\n[a](page.md) [b](#a-page) [c](no.md) [d](page.md#no) `[e](no.md)`\n")
    assert [*dead_links(page)] == ["no.md", "page.md#no"]


# Commands.


def lines(page: Path) -> Iterator[str]:
    """The lines of the page that look like commands: in fenced blocks, and in the text."""
    for language, block in FENCED.findall(page.read_text()):
        if language in ("", "sh", "bash", "console"):
            yield from (line.removeprefix("$ ") for line in block.replace("\\\n", "").splitlines())
    yield from re.findall(r"`([^`\n]+ [^`\n]+)`", prose(page))


def check(line: str) -> int:
    """Check the commands in a line of shell, and return how many there are that are known here.
    Raises an exception if one of them does not parse."""
    words = shlex.shlex(re.sub(r"\$\w+", "1", line), posix=True, punctuation_chars=True)
    words.whitespace_split = True
    try:
        tokens = [*words]
    except ValueError:  # a line of output has a quotation mark or bracket alone
        tokens = []
    if "…" in tokens:
        return 0
    commands: list[list[str]] = [[]]
    for token in tokens:
        if set(token) <= set(";|&<>()"):
            commands.append([])
        elif commands[-1] or not (token in ("do", "then") or re.match(r"[A-Z_]+=", token)):
            commands[-1].append(token)
    return sum(check_command(*command) for command in commands if command)


def check_command(first: str, *rest: str) -> bool:
    program = first.rpartition("/")[2]
    if program == "mnist-ray" and rest:
        check_ours(*rest)
    elif re.fullmatch(r"python3?", program) and rest[:1] == ("-m",) and len(rest) > 1:
        if rest[1].startswith("mnist_ray"):
            check_ours(*rest[1].split(".")[1:], *rest[2:])
    elif program == "make" and rest:
        targets = re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE)
        assert set(rest) <= set(targets), rest
    elif program == "ray" and rest:
        check_ray(*rest)
    elif program == "pip" and rest[:1] == ("install",):
        check_pip(*rest[1:])
    elif not re.fullmatch(r"python3?|bash", program):
        return False
    for word in rest:  # a file of this repository, in a folder
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)*\.(py|ya?ml|txt|sh)", word) and "=" not in word:
            assert (REPOSITORY / word).is_file(), word
    return True


def check_ours(command: str, *argv: str) -> None:
    if command.startswith("-"):
        assert command in {option.split()[0] for option in __main__.OPTIONS}, command
        return
    assert command in __main__.COMMANDS, command
    module = importlib.import_module(f"mnist_ray.{command}")
    if not argv or {"--help", "--version"} & {*argv}:  # the text speaks of the command
        return
    args = module.parser().parse_args(argv)
    if command in ("train", "tune") and not args.resume:  # the run to resume is not there
        config, base, *_ = flags.parse(argv, command, *module.CLASSES, description="")
        if command == "tune":
            search.sampler(config.replace(space=search.space_of(config)), base)


@functools.cache
def ray_cli() -> Any:
    from ray.scripts.scripts import cli

    return cli


def check_ray(*argv: str) -> None:
    import click

    group, words = ray_cli(), [*argv]
    context = click.Context(group, info_name="ray")
    while isinstance(group, click.Group):
        named, group, words = group.resolve_command(context, words)
        context = click.Context(group, parent=context, info_name=named)
    after = words[words.index("--") + 1 :] if "--" in words else []
    if not words:  # the text speaks of `ray up`, for example
        return
    group.make_context(argv[0], [*words], parent=context.parent)
    if argv[0] == "submit":
        check_ours(Path(argv[2]).stem, *after)
    elif argv[0] == "exec":
        assert check(argv[-1])
    elif argv[:2] == ("job", "submit"):
        assert check(shlex.join(after))


def check_pip(*argv: str) -> None:
    parser = argparse.ArgumentParser(exit_on_error=False)
    parser.add_argument("-c", type=lambda file: (REPOSITORY / file).read_text())
    parser.add_argument("-e", action="append", default=[])
    parser.add_argument("packages", nargs="*")
    args = parser.parse_args(argv)
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    for package in [*args.e, *args.packages]:
        if asked := re.fullmatch(r"(?:\.|mnist_ray)\[(.*)\]", package):
            assert set(asked[1].split(",")) <= set(project["optional-dependencies"]), package


@pytest.mark.parametrize("page", LIVING, ids=name)
def test_commands_parse(page: Path) -> None:
    for line in lines(page):
        try:
            check(line)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{line!r}: {error!r}") from error


@pytest.mark.parametrize("page", ["README", "CONTRIBUTING", "docs/tuning", "docs/cluster"])
def test_commands_are_found(page: str) -> None:
    assert sum(check(line) for line in lines(REPOSITORY / f"{page}.md")) >= 3


@pytest.mark.parametrize(
    "line",
    [
        "mnist-ray tune --droput 0.1",
        "mnist-ray tune --lr 100",
        "mnist-ray tune --space 'lr=uniform(1)'",
        "mnist-ray fly --lr 1",
        "mnist-ray --fly high",
        ".venv/bin/mnist-ray train --config nothing",
        "python -m mnist_ray.results --reprot x",
        "cd x && RAY_ADDRESS=local python3 -m mnist_ray.train --seed x # why",
        "for i in 1 2; do mnist-ray evaluate --worst $i x --no; done",
        "make nothing",
        "ray upp cluster.yaml",
        "ray up cluster.yml",
        "ray start --haed",
        "ray submit cluster.yaml mnist_ray/tune.py -- --nme first",
        "ray exec cluster.yaml 'python -m mnist_ray.results --no x'",
        "ray job submit --address x -- python -m mnist_ray.tune --no",
        "pip install -c nothing.txt -e .",
        "pip install 'mnist_ray[nothing]'",
        "python experiments/nothing.py",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    import click

    wrong = (AssertionError, SystemExit, OSError, UserError, argparse.ArgumentError)
    with pytest.raises((*wrong, click.UsageError)):
        check(line)


# Files, and what is in them.


def defined(file: Path) -> set[str]:
    """The names at the top of a module, and those in its classes after the class's name."""
    found = set()

    def collect(body: list[ast.stmt], before: str) -> None:
        for node in body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                found.add(before + node.name)
            if isinstance(node, ast.ClassDef):
                collect(node.body, f"{before}{node.name}.")
            for target in getattr(node, "targets", [getattr(node, "target", None)]):
                if isinstance(target, ast.Name):
                    found.add(before + target.id)

    collect(ast.parse(file.read_text()).body, "")
    return found


NAMED = re.compile(r"`((?:[\w.-]+/)+|(?:[\w.-]+/)*\w+\.py)`(?:: `([\w.]+)`)?")
"""A file, a folder with a slash at its end, or a file and what is defined in it, such as
`learn/recipe.py`: `optimizer`. Its path is that from the repository, the package or the page."""


def missing(page: Path) -> Iterator[str]:
    for path, attribute in NAMED.findall(prose(page)):
        places = (REPOSITORY, REPOSITORY / "mnist_ray", page.parent)
        found = [place / path for place in places if (place / path).exists()]
        if not found or (attribute and attribute not in defined(found[0])):
            yield f"{path} {attribute}".strip()


GUIDES = [
    *(REPOSITORY / f"{page}.md" for page in ("README", "CONTRIBUTING", "SECURITY")),
    *REPOSITORY.glob("docs/*.md"),
]


@pytest.mark.parametrize("page", GUIDES, ids=name)
def test_files_and_functions_that_are_named_exist(page: Path) -> None:
    assert [*missing(page)] == []


def test_missing_files_and_functions_are_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "| the loss | `learn/recipe.py`: `loss` |\n| a field | `config.py`: `Recipe.lr` |\n"
        "`learn/nothing.py` `learn/recipe.py`: `nothing` `config.py`: `Recipe.nothing` `none/`\n"
    )
    found = ["learn/nothing.py", "learn/recipe.py nothing", "config.py Recipe.nothing", "none/"]
    assert [*missing(page)] == found
