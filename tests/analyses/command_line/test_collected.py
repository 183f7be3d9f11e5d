"""Saved results are found and put on one page, which says what ran; damaged ones are named."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pandas as pd
import pytest

from analyses.command_line.cli import main
from analyses.command_line.collected import described, methods_text, saved_below, write_collected
from analyses.running.results import Result, environment
from hooked_vit import __version__

EVIL = "</script><script>alert(1)</script>"


@pytest.fixture
def saved(tmp_path):
    """Two whole results, one of them deeper down, and one that is damaged."""
    for where, name in (("a", "registers"), ("deep/er/b", EVIL)):
        meta = {
            "models": {name: {"class": "ViT", "n_layers": 8, "targets": {"not": "short"}}},
            "data": {"name": "imagefolder:x", "n": 40, "fingerprint": "ab12", "skipped": []},
            "fit_data": {"name": "imagefolder:y", "n": 70},
            "seeds": [0, 1],
            "batch_size": 32,
            "summary": [f"So it is {EVIL}."],
            "notes": ["Mind this."],
            "versions": {"hooked-vit": "0.0.9", "torch": "2"},
            "command": "hooked-vit run something",
        }
        Result(pd.DataFrame({"layer": [0], "value": [0.25]}), meta).save(tmp_path / where)
    Result(pd.DataFrame({"layer": [0]}), {}).save(tmp_path / "c")
    (tmp_path / "c/result.parquet").write_bytes(b"half")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden/result.json").write_text("{}")
    return tmp_path


def test_they_are_found_wherever_they_stand(saved):
    assert [str(path.relative_to(saved)) for path in saved_below(saved)] == ["a", "c", "deep/er/b"]
    row = described(saved / "a")
    assert (row["models"], row["rows"], row["version"], row["state"]) == ("registers", "1", "0.0.9", "whole")
    assert row["data"] == "imagefolder:x, 40 images, fingerprint ab12"
    assert "is not the file that result.json describes" in described(saved / "c")["state"]
    with pytest.raises(ValueError, match="is none: say another, hooked-vit list FOLDER"):
        list(saved_below(saved / "a/result.json"))


def test_the_figure_of_a_saved_result_is_written(saved, monkeypatch, capsys):
    drawn = []

    def draw(result, path, size):
        drawn.append((result.meta["models"], path, size))
        return path

    monkeypatch.setattr(Result, "savefig", draw)
    assert main(["figure", str(saved / "a"), "--out", str(saved / "f.pdf"), "--size", "paper"]) == 0
    assert [(list(models), path, size) for models, path, size in drawn] == [
        (["registers"], str(saved / "f.pdf"), "paper")
    ]
    assert capsys.readouterr().out.strip() == str(saved / "f.pdf")
    assert main(["figure", str(saved / "c"), "--out", str(saved / "f.pdf")]) == 2
    assert "is damaged, or of another run" in capsys.readouterr().err


def test_a_figure_that_cannot_be_drawn_is_one_line(saved, monkeypatch, capsys):
    assert main(["figure", str(saved / "a"), "--out", str(saved / "f.jpg")]) == 2
    assert capsys.readouterr().err == "error: a figure is saved as pdf, svg, png; got 'f.jpg'\n"
    monkeypatch.setattr(Result, "figure", lambda result: None)
    monkeypatch.setitem(sys.modules, "kaleido", None)
    assert main(["figure", str(saved / "a"), "--out", str(saved / "f.pdf")]) == 2
    assert 'pip install "hooked-vit[export]"' in capsys.readouterr().err


def test_the_methods_are_what_the_run_left(saved):
    said = methods_text(Result.load(saved / "a"))
    for fact in (
        "Models: registers (class ViT, n layers 8).",
        "Data: imagefolder:x, 40 images, fingerprint ab12.",
        "Fit data: imagefolder:y, 70 images.",
        "Settings: seeds 0 and 1, batch size 32.",
        "Versions: hooked-vit 0.0.9, torch 2.",
        "Command: hooked-vit run something.",
    ):
        assert fact in said
    assert "Mind this" not in said  # notes have a place of their own


def test_one_page_holds_them_all_and_lets_nothing_in(saved):
    page = write_collected([saved / "deep", saved / "a", saved / "a"], saved / "new/page.html").read_text("utf-8")
    assert page.count("<h3>Key numbers</h3>") == 2
    assert page.count("Mind this.") == 2
    assert EVIL not in page
    with pytest.raises(ValueError, match="is not the file that result.json describes"):
        write_collected([saved], saved / "all.html")
    assert not (saved / "all.html").exists()
    (saved / "nothing").mkdir()
    with pytest.raises(ValueError, match="nothing holds no saved result"):
        write_collected([saved / "nothing"], saved / "all.html")


def test_the_commands(saved, capsys):
    assert main(["list", str(saved)]) == 1  # one cannot be read
    assert "imagefolder:x" in capsys.readouterr().out
    assert main(["list", str(saved / "deep")]) == 0
    assert main(["report", str(saved / "a"), "--out", str(saved / "page.html")]) == 0
    assert (saved / "page.html").is_file()
    assert main(["report", str(saved / "nowhere"), "--out", str(saved / "page.html")]) == 2
    assert "nowhere is none" in capsys.readouterr().err


def test_the_version_comes_without_torch():
    code = "import sys; from analyses.command_line.cli import main; main(['--version']); print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=os.environ)
    assert said.stdout.split() == ["hooked-vit", __version__, "False"]


OLDER = {
    "analysis": "causality-vs-decodability",
    "models": {"vit": {"architecture": "vit", "n_layers": 2}},
    "data": {"name": "scenes:test", "n": 40},
    "probe_data": {"name": "scenes:train", "n": 60},
    "tokens": "cls",
    "versions": {"hooked-vit": "0.0.9"},
}


def written_by_hand(folder, frame, meta):
    """As the first versions saved: two files that do not know of each other."""
    folder.mkdir(parents=True)
    frame.to_parquet(folder / "result.parquet")
    (folder / "result.json").write_text(json.dumps(meta, indent=2) + "\n", encoding="utf-8")
    return folder


def measured():
    rows = [
        {"model": "vit", "layer": layer, "measure": measure, "value": 0.5, "low": 0.4, "high": 0.6, "n": 40}
        for layer in range(2)
        for measure in ("decodability", "probe_floor", "causal_effect", "gap")
    ]
    return pd.DataFrame(rows).assign(seed=pd.NA).astype({"layer": "Int64", "seed": "Int64"})


def test_a_result_of_an_older_version_has_the_names_of_today_and_is_listed_and_shown(tmp_path, capsys):
    old = written_by_hand(tmp_path / "old", measured(), OLDER)
    summed = Result(measured(), OLDER)  # with checksums, of what it says and not of what that is called today
    summed.save(tmp_path / "summed")
    Result.joined({"part": summed}).save(tmp_path / "joined")
    for folder in (old, tmp_path / "summed"):
        meta = Result.load(folder).meta
        assert meta["fit_data"] == OLDER["probe_data"]
        assert "probe_data" not in meta
    assert "fit_data" in Result.load(tmp_path / "joined").part("part").meta
    both = written_by_hand(tmp_path / "both", measured(), OLDER | {"fit_data": {"name": "x"}})
    assert Result.load(both).meta["fit_data"] == {"name": "x"}
    assert main(["list", str(tmp_path)]) == 0
    assert "0.0.9" in capsys.readouterr().out
    assert main(["report", str(old), str(tmp_path / "summed"), "--out", str(tmp_path / "page.html")]) == 0
    assert "Fit data: scenes:train, 60 images." in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_one_that_lacks_what_is_drawn_today_is_refused_with_its_version(tmp_path, capsys):
    """And so is one of an analysis there is no more; numbers that cannot be drawn can be loaded still."""
    frame = measured().drop(columns=["low", "high"])
    old = written_by_hand(tmp_path / "old", frame.rename(columns={"measure": "metric"}), OLDER)
    gone = written_by_hand(tmp_path / "gone", frame, OLDER | {"analysis": "asked-once"})
    assert len(Result.load(old).frame) == len(frame)
    assert main(["report", str(old), "--out", str(tmp_path / "page.html")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"{old} cannot be shown: this result of causality-vs-decodability is of hooked-vit 0.0.9 and lacks" in said
    assert "Run the analysis again" in said
    assert main(["report", str(gone), "--out", str(tmp_path / "page.html")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"{gone} cannot be shown: it is of hooked-vit 0.0.9, and there is no analysis 'asked-once'" in said
    assert not (tmp_path / "page.html").exists()


def test_a_drawing_that_fails_on_a_result_of_this_version_is_a_bug(tmp_path):
    result = Result(measured().drop(columns="measure"), OLDER | {"versions": environment()})
    with pytest.raises((KeyError, AttributeError)):
        result.figure()
