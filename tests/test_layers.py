"""The house keeps its shape: imports point one way, and a family's name stays in its own room.

Everything is read from the source, so that an import inside a function or under TYPE_CHECKING counts as well.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "hooked_vit": {"hooked_vit"},
    "interventions": {"interventions", "hooked_vit"},
    "analyses": {"analyses", "interventions", "hooked_vit"},
}
# The last three are not in the wheel: a package that imports one works only inside the repository.
OURS = {*MAY_IMPORT, "zoo_training", "benchmarks", "tests", "site_pages"}
FAMILIES = "hooked_vit.architectures"
FAMILY_FIELDS = {"family", "model_type", "architecture", "architectures"}


class Module(NamedTuple):
    path: Path
    tree: ast.Module

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


class Import(NamedTuple):
    line: int
    target: str
    """The module, where the name is one; else the module it is taken from."""
    name: str
    """Target and name, dotted, whatever the name is."""


def read(root: Path) -> dict[str, Module]:
    """Every module of the three packages under its dotted name."""
    modules = {}
    for package in MAY_IMPORT:
        for path in sorted((root / package).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            modules[name] = Module(path.relative_to(root), ast.parse(path.read_text(encoding="utf-8")))
    return modules


def imports(name: str, modules: dict[str, Module]) -> Iterator[Import]:
    module = modules[name]

    def absolute(target: str, level: int) -> str:
        if level == 0:
            return target
        parts = name.split(".")
        base = parts[: len(parts) - level + module.is_package]
        return ".".join([*base, *([target] if target else [])])

    def resolved(line: int, dotted: str) -> Import:
        parent = dotted.rpartition(".")[0]
        is_module = dotted in modules or not parent
        return Import(line, dotted if is_module else parent, dotted)

    for node in ast.walk(module.tree):
        match node:
            case ast.Import():
                for alias in node.names:
                    yield Import(node.lineno, alias.name, alias.name)
            case ast.ImportFrom():
                for alias in node.names:
                    yield resolved(node.lineno, f"{absolute(node.module or '', node.level)}.{alias.name}")
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(dotted)), *_],
            ):
                bare = dotted.lstrip(".")
                target = absolute(bare, len(dotted) - len(bare))
                yield Import(node.lineno, target, target)


def upward(modules: dict[str, Module]) -> list[str]:
    """Imports that point up, or out of what is installed."""
    return [
        f"{module.path}:{found.line} imports {found.name}"
        for name, module in modules.items()
        for found in imports(name, modules)
        if (top := found.target.partition(".")[0]) in OURS and top not in MAY_IMPORT[name.partition(".")[0]]
    ]


def is_analysis(module: Module) -> bool:
    """Whether a public function of the module answers a question, that is, returns a Result or is registered as one."""
    body = module.tree.body
    if any(isinstance(node, ast.ClassDef) and node.name == "Result" for node in body):
        return False

    def answers(function: ast.FunctionDef) -> bool:
        returned = ast.unparse(function.returns).strip("'\"") if function.returns else ""
        return returned.rpartition(".")[2] == "Result" or is_registered(function)

    return any(isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and answers(node) for node in body)


def is_registered(function: ast.FunctionDef) -> bool:
    names = {re.sub(r"\(.*", "", ast.unparse(d), flags=re.DOTALL) for d in function.decorator_list}
    return "analysis" in {name.rpartition(".")[2] for name in names}


def questions(module: Module) -> set[str]:
    """Names of the analyses registered in a module."""
    return {n.name for n in module.tree.body if isinstance(n, ast.FunctionDef) and is_registered(n)}


def sideways(modules: dict[str, Module]) -> list[str]:
    """Ways from one analysis to another, directly or through a helper; the package itself leads to all of them."""
    analyses = {name for name, module in modules.items() if name.startswith("analyses.") and is_analysis(module)}
    edges = {
        name: [found for found in imports(name, modules) if found.target.partition(".")[0] == "analyses"]
        for name in modules
    }
    ways = []
    for start in sorted(analyses):
        waiting, seen = [(start, "")], {start}
        while waiting:
            here, way = waiting.pop()
            for found in edges.get(here, []):
                if found.target in seen:
                    continue
                seen.add(found.target)
                step = f"{way}{modules[here].path}:{found.line} imports {found.target}"
                if found.target in analyses:
                    ways.append(step)
                else:
                    waiting.append((found.target, f"{step}, "))
    return ways


def rooms(modules: dict[str, Module]) -> dict[str, set[str]]:
    """The folders directly inside `analyses`, the subjects in `questions` one by one, and the modules in each."""
    found: dict[str, set[str]] = {}
    for name in modules:
        if name.startswith("analyses.") and (len(parts := name.split(".")) > 2 or modules[name].is_package):
            found.setdefault("/".join(parts[1 : 3 if parts[1] == "questions" else 2]), set()).add(name)
    return found


def across(modules: dict[str, Module]) -> list[str]:
    """Imports from one subject into another, and from one question's folder into another's.

    What two subjects share stands beside `questions`, what two questions of one subject share stands in that subject.
    """
    subjects = {room: held for room, held in rooms(modules).items() if room.startswith("questions/")}
    homes = {name.rpartition(".")[0] for held in subjects.values() for name in held if questions(modules[name])}
    folders = {folder for folder in homes if folder.count(".") > 2}
    found = []
    for room, held in subjects.items():
        for name in sorted(held):
            home = next((folder for folder in folders if name.startswith(f"{folder}.")), None)
            for there in imports(name, modules):
                other = next((r for r, names in subjects.items() if r != room and there.target in names), None)
                folder = next((f for f in folders if f != home and there.target.startswith(f"{f}.")), None)
                if other or (folder and there.target in held):
                    found.append(f"{modules[name].path}:{there.line} imports {there.name}")
    return found


def climbing(modules: dict[str, Module]) -> list[str]:
    """Imports of a question from a room beside the questions, and questions that stand in such a room."""
    beside = {name for room, held in rooms(modules).items() if not room.startswith("questions") for name in held}
    return [
        *(f"{modules[name].path} holds {question}" for name in sorted(beside) for question in questions(modules[name])),
        *(
            f"{modules[name].path}:{found.line} imports {found.name}"
            for name in sorted(beside)
            for found in imports(name, modules)
            if found.target.startswith("analyses.questions.")
        ),
    ]


def circles(modules: dict[str, Module]) -> list[str]:
    """Modules that import each other, and rooms of `analyses` that do, directly or by way of others."""
    edges = {name: {i.target for i in imports(name, modules) if i.target in modules} for name in modules}
    home = {name: room for room, held in rooms(modules).items() for name in held}
    between: dict[str, set[str]] = {}
    for name, targets in edges.items():
        if name in home:
            between.setdefault(home[name], set()).update(
                home[t] for t in targets & home.keys() if home[t] != home[name]
            )
    return [" -> ".join(way) for graph in (edges, between) if (way := _circle(graph))]


def _circle(edges: dict[str, set[str]]) -> list[str] | None:
    done: set[str] = set()

    def walk(here: str, way: list[str]) -> list[str] | None:
        if here in way:
            return [*way[way.index(here) :], here]
        if here in done:
            return None
        for there in sorted(edges.get(here, ())):
            if found := walk(there, [*way, here]):
                return found
        done.add(here)
        return None

    return next((found for start in sorted(edges) if (found := walk(start, []))), None)


def shadowed(modules: dict[str, Module]) -> list[str]:
    """Rooms called like an analysis: `from analyses import NAME` would mean one before and the other afterwards."""
    return sorted(set().union(*map(questions, modules.values())) & rooms(modules).keys())


def crowded(root: Path) -> list[str]:
    """Files nobody reads in one sitting, and folders nobody takes in at a glance."""
    found = []
    for package in MAY_IMPORT:
        for path in sorted((root / package).rglob("*")):
            if path.suffix == ".py" and (n := len(path.read_text(encoding="utf-8").splitlines())) > 300:
                found.append(f"{path.relative_to(root)} has {n} lines")
            if path.is_dir() and (n := sum(p.name != "__pycache__" for p in path.iterdir())) > 16:
                found.append(f"{path.relative_to(root)}/ has {n} entries")
    return found


def family_names(modules: dict[str, Module]) -> set[str]:
    parent = f"{FAMILIES}."
    stems = {name.rpartition(".")[2] for name in modules if name.startswith(parent)}
    return {stem for stem in stems if not stem.startswith("_")}


def family_lore(modules: dict[str, Module]) -> list[str]:
    """Places outside the architectures that ask which family a model is, or import one family's classes."""
    names = family_names(modules)

    def is_field(node: ast.expr) -> bool:
        match node:
            case ast.Name(id=word) | ast.Attribute(attr=word) | ast.Subscript(slice=ast.Constant(value=str(word))):
                return word in FAMILY_FIELDS
        return False

    def literals(node: ast.AST) -> set[str]:
        return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}

    def asks(node: ast.AST) -> bool:
        match node:
            case ast.Compare():
                sides = [node.left, *node.comparators]
                compared = set().union(
                    *(literals(s) for s in sides if isinstance(s, ast.Constant | ast.Tuple | ast.List | ast.Set))
                )
                equality = any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops)
                return bool(compared & names) or (any(map(is_field, sides)) and (equality or bool(compared)))
            case ast.Match():
                return is_field(node.subject) or any(literals(case.pattern) & names for case in node.cases)
        return False

    def is_class_of_family(found: Import) -> bool:
        top, _, rest = found.name.partition(".")
        words = rest.lower().split(".")
        return top == "transformers" and any(word.startswith(tuple(names)) for word in words)

    lore = []
    for name, module in modules.items():
        if name == FAMILIES or name.startswith(f"{FAMILIES}."):
            continue
        lore += [f"{module.path}:{node.lineno} {ast.unparse(node)}" for node in ast.walk(module.tree) if asks(node)]
        lore += [f"{module.path}:{f.line} imports {f.name}" for f in imports(name, modules) if is_class_of_family(f)]
    return lore


def undeclared(modules: dict[str, Module]) -> list[str]:
    """Third-party imports that pyproject.toml does not ask for, and so work by another package's grace."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [extra for key, extra in project["optional-dependencies"].items() if key != "dev"]

    def canonical(requirement: str) -> str:
        return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()

    declared = {canonical(r) for group in [project["dependencies"], *extras] for r in group}
    providers = importlib.metadata.packages_distributions()
    return [
        f"{module.path}:{found.line} imports {found.name}"
        for name, module in modules.items()
        for found in imports(name, modules)
        if (top := found.target.partition(".")[0]) not in OURS | sys.stdlib_module_names
        and not declared & {canonical(d) for d in providers.get(top, [top])}
    ]


@pytest.fixture(scope="module")
def house() -> dict[str, Module]:
    return read(ROOT)


def test_three_packages_are_there(house):
    assert house.keys() >= MAY_IMPORT.keys()
    assert family_names(house)


def test_imports_point_down(house):
    assert upward(house) == []


def test_analyses_do_not_know_each_other(house):
    assert sideways(house) == []


def test_subjects_and_questions_keep_to_themselves(house):
    assert across(house) == []


def test_rooms_beside_the_questions_know_none(house):
    assert climbing(house) == []


def test_there_are_no_circles(house):
    assert circles(house) == []


def test_no_room_is_called_like_an_analysis(house):
    assert shadowed(house) == []


def test_files_and_folders_stay_small():
    assert crowded(ROOT) == []


def test_only_architectures_know_families(house):
    assert family_lore(house) == []


def test_third_party_imports_are_declared(house):
    assert undeclared(house) == []


LEAVES = {
    "analyses/__init__.py": "from analyses.questions.one.first import first",
    "analyses/results.py": "class Result: ...\ndef load(folder) -> Result: ...",
    "analyses/floor/ridge.py": "import torch",
    "analyses/questions/one/first.py": "from analyses.results import Result\n@analysis\ndef first() -> Result: ...",
    "analyses/questions/one/shared.py": "import analyses.floor.ridge",
    "analyses/questions/two/second/second.py": "import analyses.floor.ridge\n@analysis()\ndef second(): ...",
    "analyses/questions/two/second/part.py": "",
    "hooked_vit/architectures/beit.py": "FAMILY = 'beit'\nassert FAMILY == 'beit'",
}


@pytest.mark.parametrize(
    ("check", "path", "source", "says"),
    [
        (upward, "hooked_vit/a.py", "import interventions.core", "interventions.core"),
        (upward, "hooked_vit/a.py", "def f():\n    from analyses import data", "analyses.data"),
        (upward, "hooked_vit/sub/__init__.py", "from ...analyses import data", "analyses.data"),
        (upward, "interventions/a.py", "import importlib\nimportlib.import_module('analyses.data')", "analyses.data"),
        (upward, "analyses/a.py", "from zoo_training.train_zoo import main", "zoo_training.train_zoo.main"),
        (
            sideways,
            "analyses/a.py",
            "from .questions.one.first import first\ndef a() -> 'Result': ...",
            "analyses.questions.one.first",
        ),
        (
            sideways,
            "analyses/a.py",
            "import analyses.questions.one.first\n@analysis(data=1)\ndef a(): ...",
            "analyses.questions.one.first",
        ),
        (
            sideways,
            "analyses/a.py",
            "from analyses import Result\ndef a() -> results.Result: ...",
            "analyses.questions.one.first",
        ),
        (
            across,
            "analyses/questions/one/a.py",
            "import analyses.questions.two.second.part",
            "analyses.questions.two.second.part",
        ),
        (
            across,
            "analyses/questions/two/a.py",
            "def f():\n    from analyses.questions.one import shared",
            "analyses.questions.one.shared",
        ),
        (
            across,
            "analyses/questions/two/third/third.py",
            "import analyses.questions.two.second.part\n@analysis\ndef third(): ...",
            "part",
        ),
        (climbing, "analyses/floor/a.py", "import analyses.questions.one.shared", "one.shared"),
        (climbing, "analyses/floor/a.py", "@analysis\ndef a(): ...", "holds a"),
        (circles, "analyses/floor/a.py", "def f():\n    from analyses.floor import a", "analyses.floor.a"),
        (
            circles,
            "analyses/floor/a.py",
            "def f():\n    import analyses.questions.one.shared",
            "floor -> questions/one",
        ),
        (family_lore, "hooked_vit/a.py", "if cfg.family == x: ...", "cfg.family == x"),
        (family_lore, "analyses/a.py", "ok = config['model_type'] in ('new', 'old')", "model_type"),
        (family_lore, "analyses/a.py", "y = 1 if name == 'beit' else 2", "name == 'beit'"),
        (family_lore, "interventions/a.py", "match name:\n    case 'beit': ...", "case 'beit'"),
        (family_lore, "hooked_vit/a.py", "from transformers import BeitModel", "BeitModel"),
        (undeclared, "hooked_vit/a.py", "import pluggy", "pluggy"),
    ],
)
def test_a_planted_fault_is_found(tmp_path, check, path, source, says):
    for name, text in {**LEAVES, path: source}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    found = check(read(tmp_path))
    assert found
    assert says in found[0]
    assert check is circles or (len(found) == 1 and path in found[0])


@pytest.mark.parametrize("check", [upward, sideways, across, climbing, circles, shadowed, family_lore, undeclared])
@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("interventions/a.py", "from hooked_vit import HookedViT"),
        ("analyses/a.py", "from . import results\nfrom analyses.results import Result\ndef a() -> Result: ..."),
        ("analyses/cli.py", "import analyses.questions.one.first\nimport json, torch, PIL.Image, sklearn.linear_model"),
        ("hooked_vit/a.py", "known = cfg.model_type in registry\nfrom transformers import AutoModel"),
    ],
)
def test_a_sound_house_passes(tmp_path, check, path, source):
    for name, text in {**LEAVES, path: source}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert check(read(tmp_path)) == []
