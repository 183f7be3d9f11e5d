"""The wheel, installed elsewhere, is the whole package: it runs with nothing of the checkout on the path."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from email import message_from_string
from email.message import Message
from pathlib import Path

import pytest

pytestmark = pytest.mark.xdist_group("wheel")  # which is built once
ROOT = Path(__file__).parents[1]
PACKAGES = ("hooked_vit", "interventions", "analyses")
# The only folder of ours on the path is the one it was installed into; an editable install would lead to the checkout.
LAUNCH = """
import sys
from pathlib import Path
installed, *arguments = sys.argv[1:]
sys.path[:] = [installed, *(p for p in sys.path if p and not (Path(p) / "hooked_vit").is_dir())]
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in type(f).__module__.lower()]
from analyses.command_line import cli
if arguments[0] == "demo":  # with as little as it runs with
    from analyses.data import sets
    from analyses.running import models
    cli.DEMO_IMAGES, sets.two_sets.__kwdefaults__["n_fit"] = 16, 40
    models.default_models = lambda *_: ["zoo:vit"]
status = cli.main(arguments)
ours = {name: m.__file__ for name, m in sys.modules.items() if name.partition(".")[0] in (
    "hooked_vit", "interventions", "analyses", "tests", "site_pages") and getattr(m, "__file__", None)}
strangers = {name: file for name, file in ours.items() if not Path(file).is_relative_to(installed)}
sys.exit(f"from elsewhere: {strangers}" if strangers else status)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr + "\n(the extra `dev` brings hatchling)"
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("elsewhere") / "packages"
    with zipfile.ZipFile(wheel) as archive:  # which is what installing a wheel of pure Python does
        archive.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def metadata(installed: Path) -> Message:
    (path,) = installed.glob("hooked_vit-*.dist-info/METADATA")
    return message_from_string(path.read_text(encoding="utf-8"))


def run(installed: Path, cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    launcher = cwd / "launch.py"
    launcher.write_text(LAUNCH, encoding="utf-8")
    command = [sys.executable, str(launcher), str(installed), *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=200, check=False)


def test_version(installed, tmp_path, metadata):
    done = run(installed, tmp_path, "--version")
    assert (done.returncode, done.stdout) == (0, f"hooked-vit {metadata['Version']}\n"), done.stderr


def test_the_demo_runs(installed, tmp_path):
    done = run(installed, tmp_path, "demo", "--out", "demo")
    assert done.returncode == 0, done.stderr[-2000:]
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"report.html", "result.json", "result.parquet"}


def test_pages_can_be_read_where_messages_point_to_them(installed, tmp_path):
    done = run(installed, tmp_path, "docs", "families")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (ROOT / "docs" / "families.md").read_text(encoding="utf-8")


def test_everything_that_lies_in_the_packages_is_inside(installed):
    def files(root: Path) -> set[str]:
        found = {
            path.relative_to(root) for package in PACKAGES for path in (root / package).rglob("*") if path.is_file()
        }
        return {path.as_posix() for path in found if "__pycache__" not in path.parts}

    there = files(installed)
    assert files(ROOT) <= there
    ends = {Path(name).suffix for name in there}
    assert ends >= {".css", ".js", ".json", ".md", ".py", ".safetensors", ".toml", ".txt", ".typed"}
    assert {path.name for path in installed.iterdir()} == {*PACKAGES, next(installed.glob("*.dist-info")).name}


def test_messages_name_no_file_that_an_installed_package_has_not():
    """A page of the documentation is named by the command that prints it."""
    writers = {"coverage_page.py", "page.py"}  # which write into a checkout's docs/, and do not run elsewhere
    pointing = re.compile(r"(?:docs|notebooks|benchmarks)/[\w/]+\.(?:md|ipynb)|README|CONTRIBUTING")
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for text in _said(path) if path.name not in writers else ():
                assert not pointing.search(text), f"{path.relative_to(ROOT)}: {text}"


def _said(path: Path) -> list[str]:
    """The texts in a module that are no docstrings."""
    import ast

    tree = ast.parse(path.read_text(encoding="utf-8"))
    alone = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str))
    return [node.value for node in texts if id(node) not in alone]


def test_pythons_are_those_that_are_tested(metadata):
    """Lint and tests are told one version, and the classifiers name no other."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = [c.rpartition(" ")[2] for c in metadata.get_all("Classifier") if re.search(r":: 3\.\d+$", c)]
    assert named == [project["tool"]["mypy"]["python_version"]]
    assert metadata["Requires-Python"] == f">={named[0]}"


def test_extras_say_what_each_is_for(metadata):
    assert set(metadata.get_all("Provides-Extra")) == {"dev", "docs", "export", "notebooks", "scale", "timm"}
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in metadata.get_all("Provides-Extra"):
        assert re.search(rf"^# [^\n]+\n{extra} = \[", text, flags=re.MULTILINE), extra


ADDRESS = "https://example.org/hooked-vit"


def _hook() -> object:
    import importlib.util

    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def targets(text: str) -> list[str]:
    """Where links and pictures of a Markdown text lead, as it is rendered."""
    import markdown

    html = markdown.markdown(text, extensions=["fenced_code", "tables"])
    return re.findall(r'(?:href|src)="([^"]*)"', html)


def test_the_readme_on_an_index_leads_nowhere_that_is_not(metadata):
    assert metadata["Description-Content-Type"] == "text/markdown"
    body = metadata.get_payload()
    assert "# hooked-vit" in body
    assert [place for place in targets(body) if not place.startswith(("https://", "#"))] == []


def test_with_an_address_links_and_pictures_are_absolute():
    hook, text = _hook(), (ROOT / "README.md").read_text(encoding="utf-8")
    with_address = targets(hook.readme(text, ADDRESS))
    local = [place for place in targets(text) if "://" not in place and not place.startswith("#")]
    assert f"{ADDRESS}/raw/main/docs/demo.png" in with_address
    assert len(local) == sum(place.startswith(ADDRESS) for place in with_address) > 3
    assert all((ROOT / place).exists() for place in local)
    assert set(hook.urls(ADDRESS)) == {"Repository", "Documentation", "Changelog", "Issues"}
    assert hook.urls("") == {}


def test_the_citation_is_of_this_version(metadata):
    import yaml

    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == metadata["Version"]
    assert cited["license"] == metadata["License-Expression"]
    assert {"cff-version", "message", "title", "authors"} <= cited.keys()
