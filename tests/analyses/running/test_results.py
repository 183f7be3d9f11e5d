"""Results survive saving; analyses are found by looking; importing names costs no torch."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

import analyses
from analyses.running.catalogue import REGISTERED, get_analysis, registered_analyses
from analyses.running.files import LIST, SAVED, check_writable
from analyses.running.notice import remark
from analyses.running.registry import analysis
from analyses.running.results import Result, environment
from tests.tiny import tiny


@pytest.fixture
def registry(monkeypatch, tmp_path):
    """An empty registry, and a package whose modules are those in `tmp_path`."""
    before = dict(REGISTERED)
    REGISTERED.clear()
    monkeypatch.setattr(analyses, "__path__", [str(tmp_path)])
    yield
    REGISTERED.clear()
    REGISTERED.update(before)


FRAME = pd.DataFrame(
    {
        "model": ["vit", "déit", None],
        "layer": np.array([0, 1, 2], np.int16),
        "accuracy": [0.1, np.nan, 1 / 3],
        "single": np.array([0.1, 0.2, 0.3], np.float32),
        "kind": pd.Categorical(["a", "b", "a"], categories=["b", "a"], ordered=True),
        "maybe": pd.array([1, None, 3], dtype="Int64"),
        "used": [True, False, True],
        "when": pd.to_datetime(["2024-01-01", "2024-01-02", "2024-01-03"]),
    }
)
META = {"analysis": "none", "seeds": [0, 1], "n": 3, "share": 0.1, "nested": {"π": [[1, 2], None, True]}}


def test_saving_and_loading_changes_nothing(tmp_path):
    folder = Result(FRAME, META).save(tmp_path / "a" / "b")
    back = Result.load(folder)
    pd.testing.assert_frame_equal(back.frame, FRAME, check_exact=True)
    assert (back.frame.dtypes == FRAME.dtypes).all()
    assert back.meta == META
    assert sorted(p.name for p in folder.iterdir()) == ["result.json", "result.parquet"]


def test_saving_again_replaces(tmp_path):
    Result(FRAME, META).save(tmp_path)
    Result(FRAME.head(1), {}).save(tmp_path)
    assert len(Result.load(tmp_path).frame) == 1
    assert len(list(tmp_path.iterdir())) == 2


def test_a_failed_save_leaves_the_former_result_whole(tmp_path):
    Result(FRAME, META).save(tmp_path)
    broken = Result(pd.DataFrame({"x": [object()]}), {})
    with pytest.raises(Exception, match="object"):
        broken.save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["result.json", "result.parquet"]
    pd.testing.assert_frame_equal(Result.load(tmp_path).frame, FRAME)


def test_a_pair_of_two_saves_is_not_believed(tmp_path):
    Result(FRAME, META).save(tmp_path / "a")
    Result(FRAME.head(1), META).save(tmp_path / "b")
    (tmp_path / "a" / "result.parquet").write_bytes((tmp_path / "b" / "result.parquet").read_bytes())
    with pytest.raises(ValueError, match="result.parquet in .* is not the file that result.json describes"):
        Result.load(tmp_path / "a")
    for damaged in (b"", b"{", b"[]", b"null", b'{"sha256": 1}', b'{"sha256": {}}', b"\xff"):
        (tmp_path / "b" / "result.json").write_bytes(damaged)
        with pytest.raises(ValueError, match="result.json is damaged"):
            Result.load(tmp_path / "b")


def test_what_an_earlier_version_saved_is_read(tmp_path):
    FRAME.to_parquet(tmp_path / "result.parquet")
    (tmp_path / "result.json").write_text(json.dumps(META, indent=2) + "\n", encoding="utf-8")
    back = Result.load(tmp_path)
    pd.testing.assert_frame_equal(back.frame, FRAME, check_exact=True)
    assert back.meta == META


def test_a_description_may_be_read_by_hand_and_not_edited(tmp_path):
    Result(FRAME, META).save(tmp_path)
    told = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert told.pop("sha256").keys() == {"result.parquet", "result.json"}
    assert told == META
    (tmp_path / "result.json").write_text((tmp_path / "result.json").read_text().replace('"n": 3', '"n": 4'))
    with pytest.raises(ValueError, match="is not what was saved"):
        Result.load(tmp_path)


def test_the_name_of_the_checksums_is_taken(tmp_path):
    with pytest.raises(ValueError, match=r"meta\['sha256'\] is where checksums"):
        Result(FRAME, {"sha256": 1}).save(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_other_files_of_the_folder_stay(tmp_path):
    for name in ("notes.txt", "report.html", ".hidden.part"):
        (tmp_path / name).write_text("mine")
    Result(FRAME, META).save(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        *("notes.txt", "report.html", ".hidden.part", "result.json", "result.parquet")
    }
    Result(FRAME, META).save(tmp_path)
    assert not (tmp_path / "report.html").exists(), "now it would be taken for the page of this result"


@pytest.mark.parametrize("name", ["../outside", "..", "", "/tmp/x", "deep/er"])
def test_a_folder_from_elsewhere_moves_and_removes_nothing_outside(tmp_path, name):
    (tmp_path / "outside").write_text("mine")
    waiting = tmp_path / "out" / SAVED
    waiting.mkdir(parents=True)
    (waiting / LIST).write_text(json.dumps({name: False}))
    for touch in (Result(FRAME, META).save, Result.load):
        with pytest.raises(ValueError, match="was not written by hooked-vit"):
            touch(tmp_path / "out")
    assert (tmp_path / "outside").read_text() == "mine"


def test_readers_beside_a_writer_see_whole_results(tmp_path):
    """Numbers and description belong together, however often they are replaced meanwhile."""
    code = (
        "import sys, pandas as pd\nfrom analyses.running.results import Result\nprint('go', flush=True)\n"
        f"for n in range(1, 60): Result(pd.DataFrame({{'x': range(n)}}), {{'n': n}}).save({str(tmp_path)!r})\n"
    )
    Result(pd.DataFrame({"x": [0]}), {"n": 1}).save(tmp_path)
    env = {**os.environ, "PYTHONPATH": str(Path(analyses.__file__).parent.parent)}
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env)
    with writer:
        writer.stdout.readline()
        seen = set()
        while writer.poll() is None:
            found = Result.load(tmp_path)
            assert len(found.frame) == found.meta["n"]
            seen.add(found.meta["n"])
    assert writer.returncode == 0
    assert len(seen) > 3


def test_meta_is_kept_as_json_knows_it(tmp_path):
    meta = {
        "seeds": (0, 1),
        "alpha": np.float64(0.5),
        "counts": np.array([1, 2]),
        "shift": torch.tensor([1.5]),
        "folder": Path("out"),
        "names": {"b", "a"},
        3: np.int64(4),
        "nothing": float("nan"),
        "flag": np.bool_(True),
    }
    result = Result(FRAME, meta)
    assert result.meta == {
        "seeds": [0, 1],
        "alpha": 0.5,
        "counts": [1, 2],
        "shift": [1.5],
        "folder": "out",
        "names": ["a", "b"],
        "3": 4,
        "nothing": None,
        "flag": True,
    }
    assert Result.load(result.save(tmp_path)).meta == result.meta


def test_meta_that_json_does_not_know_is_named():
    with pytest.raises(TypeError, match=r"meta\['models'\]\[0\] is a Linear"):
        Result(FRAME, {"models": [torch.nn.Linear(1, 1)]})


def test_a_result_is_a_table():
    with pytest.raises(Exception, match="DataFrame"):
        Result([1, 2], {})


def test_loading_from_a_folder_without_a_result(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"lacks \['result.parquet', 'result.json'\]"):
        Result.load(tmp_path)


def test_a_file_in_the_way_of_the_folder(tmp_path):
    (tmp_path / "out").write_text("")
    for folder in (tmp_path / "out", tmp_path / "out" / "deeper"):
        with pytest.raises(NotADirectoryError, match=r"out is not one"):
            check_writable(folder)
        with pytest.raises(NotADirectoryError, match=r"out is not one"):
            Result(FRAME, META).save(folder)


def test_a_dangling_link_in_the_way(tmp_path):
    (tmp_path / "out").symlink_to(tmp_path / "gone")
    with pytest.raises(NotADirectoryError, match="out is not one"):
        check_writable(tmp_path / "out")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that not even root can write to")
def test_a_folder_that_cannot_be_written_to():
    with pytest.raises(PermissionError, match="/proc cannot"):
        check_writable("/proc/results")


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_folder_without_permission(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="choose another"):
        check_writable(tmp_path / "out")


def test_checking_creates_nothing(tmp_path):
    assert check_writable(tmp_path / "new" / "er") == tmp_path / "new" / "er"
    check_writable(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_environment_names_versions_and_nothing_else():
    versions = environment()
    assert versions["torch"] == torch.__version__.split("+")[0] or versions["torch"] == torch.__version__
    assert versions["python"].startswith("3.")
    assert not any("/" in v for v in versions.values())


def question(frame=FRAME, **meta):
    """Does it work? And a second line."""
    return Result(frame, meta)


def test_a_registered_analysis_is_called_drawn_and_found(registry):
    ask = analysis(figure=lambda result: go.Figure(layout={"title": result.meta["analysis"]}))(question)
    result = ask(seeds=3)
    assert result.meta["analysis"] == "question"
    assert result.meta["seeds"] == 3
    assert result.meta["versions"] == environment()
    assert result.figure().layout.title.text == "question"
    assert get_analysis("question").run is ask
    assert get_analysis("question")(seeds=1).meta["seeds"] == 1
    assert get_analysis("question").summary == "Does it work? And a second line."
    assert "question" in registered_analyses()


def test_a_result_keeps_its_figure_through_a_file(registry, tmp_path):
    ask = analysis("other-name", figure=lambda _: go.Figure())(question)
    assert isinstance(Result.load(ask().save(tmp_path)).figure(), go.Figure)


def test_names_have_dashes_outside_and_underscores_inside(registry):
    def first_thing():
        return Result(FRAME, {})

    analysis(first_thing)
    assert get_analysis("first_thing") is get_analysis("first-thing")
    assert get_analysis("first-thing").name == "first-thing"


def test_an_unknown_analysis_offers_the_nearest(registry):
    analysis("some-question")(question)
    with pytest.raises(LookupError, match="no analysis 'some-questoin'; did you mean 'some-question'"):
        get_analysis("some_questoin")
    with pytest.raises(LookupError, match=r"there are .*some-question"):
        get_analysis("zzzzzz")


def test_a_name_belongs_to_one_function(registry):
    analysis("taken")(question)
    analysis("taken")(question)  # the same cell run again

    def different():
        return Result(FRAME, {})

    with pytest.raises(ValueError, match=r"'taken' is taken by .*question"):
        analysis("taken")(different)


def test_an_analysis_returns_a_result(registry):
    def wrong():
        return FRAME

    with pytest.raises(Exception, match="Result"):
        analysis(wrong)()


def test_what_was_read_and_remarked_stands_in_every_result(registry):
    """Of an analysis that says nothing of either; one inside another keeps its own remarks."""

    @analysis
    def inner(models):
        remark("of the inner one")
        return Result(pd.DataFrame({"n": [1]}))

    @analysis
    def outer(models):
        remark("first")
        remark("first")
        inner(models)
        return Result(pd.DataFrame({"n": [1]}), {"notes": ["its own"]})

    deit = tiny("deit-teacher")[1]
    result = outer({"a": deit, "b": tiny("clip-full")[1]})
    assert result.meta["notes"] == ["its own", "first"]
    assert result.meta["read"] == {
        "a": "its own head on cls beside dist behind the final norm",
        "b": "its own projection on cls behind the final norm",
    }
    assert inner({"a": deit}).meta["notes"] == ["of the inner one"]
    remark("where none runs, nobody hears it")


def test_results_without_a_figure_say_why(registry):
    with pytest.raises(LookupError, match="does not say which"):
        Result(FRAME, {}).figure()
    with pytest.raises(LookupError, match="has no figure"):
        analysis("plain")(question)().figure()
    with pytest.raises(LookupError, match="no analysis 'lost'"):
        Result(FRAME, {"analysis": "lost"}).figure()


MODULE = """
import pandas as pd
from analyses.running.registry import analysis
from analyses.running.results import Result

@analysis()
def dropped_in(n=1):
    "Dropped in."
    return Result(pd.DataFrame({"n": [n]}), {})

@analysis()
def second_in_it():
    return Result(pd.DataFrame(), {})
"""


@pytest.fixture
def module(tmp_path, registry):
    """A module that holds analyses, put into a room of the package; nothing else is edited."""
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "dropped_in.py").write_text(MODULE)
    importlib.invalidate_caches()
    yield
    sys.modules.pop("analyses.room.dropped_in", None)
    sys.modules.pop("analyses.room", None)
    vars(analyses).pop("room", None)


def test_an_analysis_is_found_wherever_it_stands(module):
    from analyses import dropped_in

    assert dropped_in(n=4).frame.n.tolist() == [4]
    assert "dropped-in" in registered_analyses()


def test_it_stays_the_function_whoever_imports_the_module(module):
    assert get_analysis("dropped-in").name == "dropped-in"  # imports it as a module
    from analyses import dropped_in

    assert callable(dropped_in)
    importlib.import_module("analyses.room.dropped_in")
    assert analyses.dropped_in is dropped_in


def test_a_second_analysis_in_a_module(module):
    assert "second-in-it" in registered_analyses()
    assert get_analysis("second_in_it").name == "second-in-it"
    assert {"dropped_in", "second_in_it"} <= set(dir(analyses))


def test_names_that_are_none(module):
    with pytest.raises(ImportError, match="droped_in"):
        from analyses import droped_in  # noqa: F401
    with pytest.raises(AttributeError, match="did you mean 'dropped_in'"):
        _ = analyses.droped_in
    assert not hasattr(analyses, "setup_module")
    assert "analyses.room.dropped_in" not in sys.modules


def test_one_analysis_does_not_wait_for_all(module, tmp_path):
    (tmp_path / "slow.py").write_text("raise RuntimeError('imported')\n@analysis\ndef slow(): ...\n")
    assert get_analysis("dropped-in").summary == "Dropped in."
    with pytest.raises(RuntimeError, match="imported"):
        registered_analyses()


def test_the_packages_own_analyses_are_found_and_say_what_they_ask():
    assert {name for name, entry in registered_analyses().items() if not entry.summary.endswith((".", "?"))} == set()


@pytest.mark.parametrize("name", ["analyses", "analyses.data.scenes", "analyses.data"])
def test_these_import_without_torch(name):
    code = f"import sys, {name}; sys.exit(any(m in sys.modules for m in ('torch', 'pandas', 'datasets', 'plotly')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(analyses.__file__).parent.parent).returncode == 0


def test_public_names_are_there():
    assert {name for name in analyses.__all__ if not callable(getattr(analyses, name))} == set()
    assert json.dumps(environment())


def test_a_notebook_shows_its_sentence_and_its_first_rows_as_text():
    frame = pd.DataFrame({"model": ["<b>vit</b>"] * 30, "layer": range(30)})
    page = Result(frame, {"analysis": "cls-causality", "summary": ["<i>So it is.</i>"]})._repr_html_()
    assert "&lt;i&gt;So it is." in page
    assert "&lt;b&gt;vit" in page
    assert page.count("<tr") < 12
    assert repr(Result(frame)) == "Result(of no analysis: 30 rows of model, layer)"
