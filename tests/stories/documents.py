"""The code on our pages: what is fenced, what says that it is not run, and which commands are named.

A block of Python that cannot run in a test says why, in a comment of the line before it:

    <!-- not run: it asks a cluster for eight GPUs -->
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import shlex
import tomllib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from analyses.command_line.cli import UsageError, parse
from tests.stories.notebooks import NOTEBOOKS, read

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OURS = ("hooked_vit", "interventions", "analyses")
FENCE = re.compile(r"^(?:<!-- not run:(?P<why>.*?)-->\n)?```(?P<language>\w*)\n(?P<code>.*?)^```$", re.M | re.S)
# A sentence may speak of a command without its arguments.
NAMED = [["run"], ["explore"], ["features"], ["reproduce"], ["cache"], ["grid"]]
STANDS_FOR = {
    "MODEL": "zoo:vit",
    "M": "zoo:vit",
    "D": "scenes:test",
    "NAME": "cls-causality",
    "ANALYSIS": "cls-causality",
    "…": "cls-causality",
    "P": "1",
}
INLINE = re.compile(r"(?<!`)`((?:hooked-vit|make|python -m) [^`\n]+)`(?!`)")


class Block(NamedTuple):
    """Fenced code, with its line and why it is not run, where it says so."""

    line: int
    language: str
    code: str
    why: str | None


def blocks(text: str, *languages: str) -> list[Block]:
    """The fenced blocks of a page, all or those of some languages."""
    found = [
        Block(text.count("\n", 0, m.start("code")), m["language"], m["code"], m["why"]) for m in FENCE.finditer(text)
    ]
    return [block for block in found if not languages or block.language in languages]


def python(path: Path) -> list[str]:
    """The code of a page that runs, block by block."""
    return [block.code for block in blocks(path.read_text(encoding="utf-8"), "python") if block.why is None]


def texts() -> Iterator[tuple[str, str]]:
    """Every page, and what the notebooks tell, with its name."""
    for path in PAGES:
        yield str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")
    for path in NOTEBOOKS:
        yield path.name, "\n\n".join(c.source for c in read(path).cells if c.cell_type == "markdown")


def commands(text: str) -> list[str]:
    """Every command of a page, one line each: those of its sh blocks, and those named in a sentence."""
    found = []
    for block in blocks(text, "sh", "bash", "console", "shell"):
        lines = block.code.replace("\\\n", " ").splitlines()
        found += [line.strip().removeprefix("$ ") for line in lines if line.strip() and not line.startswith("#")]
    return found + [part for said in INLINE.findall(FENCE.sub("", text)) for part in _each(said)]


def _each(said: str) -> Iterator[str]:
    """A sentence's `run a|b|c` is three commands."""
    words = said.split()
    options = next((word.split("|") for word in words if re.fullmatch(r"[\w-]+(\|[\w-]+)+", word)), [""])
    for option in options:
        yield " ".join(option if "|" in word and option else word for word in words)


def wrong(command: str) -> str:
    """What is wrong with a command, by the parser that would read it; empty where nothing is."""
    argv = shlex.split(command, comments=True)
    match argv:
        case ["hooked-vit", *rest]:
            return "" if rest in NAMED else _refused([_meant(word) for word in rest])
        case ["accelerate" | "torchrun", *words] if "analyses.command_line.cli" in words:
            return _refused([_meant(word) for word in words[words.index("analyses.command_line.cli") + 1 :]])
        case ["make", *words]:
            targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
            return "".join(f"no target {word}" for word in words if "=" not in word and word not in targets)
        case ["python" | ".venv/bin/python", "-m", module, *_]:
            return "" if find_spec(module) else f"no module {module}"
        case ["pip" | ".venv/bin/pip", "install", *packages]:
            return _not_installed(packages)
        case [".venv/bin/pre-commit", "install"]:
            return ""
        case [name, *_] if re.match(r"\w+=", name):  # a script sets a variable
            return ""
    return "nobody knows how to check this command: teach tests.stories.documents.wrong"


def _meant(word: str) -> str:
    """What a word stands for: a variable of a script is a model."""
    return "zoo:vit" if word == "$model" else STANDS_FOR.get(word, word)


def _refused(argv: list[str]) -> str:
    try:
        args = parse(argv)
    except SystemExit as stop:  # --help, --version
        return "" if not stop.code else f"exit {stop.code}"
    except (UsageError, LookupError, ValueError) as error:
        return str(error)
    recipes = [path.stem for path in (ROOT / "analyses/reproductions/recipes").glob("*.toml")]
    if args.command == "reproduce" and args.recipe not in (*recipes, "RECIPE"):
        return f"no recipe {args.recipe}"
    return ""


def _not_installed(packages: list[str]) -> str:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    asked = [extra for package in packages for extra in re.findall(r"hooked-vit\[([\w,-]+)\]|\.\[([\w,-]+)\]", package)]
    names = {name for pair in asked for part in pair for name in part.split(",") if name}
    return ", ".join(f"no extra {name}" for name in sorted(names - extras.keys()))


def missing(code: str) -> list[str]:
    """Names of ours that code imports and we have not, and arguments that what it calls does not take."""
    tree, known, found = ast.parse(code), dict[str, Any](), list[str]()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in OURS:
            for name in node.names:
                try:
                    known[name.asname or name.name] = _imported(node.module or "", name.name)
                except (ImportError, AttributeError):
                    found.append(f"{node.module} has no {name.name}")
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        path = ast.unparse(call.func).split(".")
        if path[0] in known:
            found += _misfits(".".join(path), _attribute(known[path[0]], path[1:]), call)
    return found


def _imported(module: str, name: str) -> Any:
    home = importlib.import_module(module)
    return getattr(home, name) if hasattr(home, name) else importlib.import_module(f"{module}.{name}")


def _attribute(value: Any, path: list[str]) -> Any:
    for name in path:
        value = getattr(value, name, None)
    return value


def _misfits(name: str, function: Any, call: ast.Call) -> list[str]:
    if function is None:
        return [f"there is no {name}"]
    try:
        takes = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return []
    if any(p.kind is p.VAR_KEYWORD for p in takes.values()):
        return []
    return [f"{name} takes no {k.arg}" for k in call.keywords if k.arg is not None and k.arg not in takes]
