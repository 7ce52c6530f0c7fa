from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from robustkit.errors import SoundnessError
from robustkit.reports import RunFacts, as_csv, as_latex, as_markdown, as_text, compare, write_report
from robustkit.reports.facts import recipes
from robustkit.reports.page import as_page
from robustkit.reports.plots import plot_training
from robustkit.results import Subject, evaluation_table
from robustkit.verdict import Verdict

M, F, U, V = Verdict.MISCLASSIFIED, Verdict.FALSIFIED, Verdict.UNKNOWN, Verdict.VERIFIED
P = Verdict.VERIFIED_FLOAT


@dataclass(frozen=True)
class Pictures:
    x: NDArray[np.float32]
    x_adv: NDArray[np.float32]
    y: NDArray[np.int64]
    predicted: NDArray[np.int64]
    eps: float = 0.1


def rows(run: str, kind: str, method: str, verdicts: list[Verdict], *, eps: float = 0.1, seed: int = 0) -> pd.DataFrame:
    size = len(verdicts)
    return evaluation_table(
        Subject(run, f"weights of {run}", "ibp", 0.1, "digits", seed),
        kind,
        method,
        f"{method}()",
        eps=eps,
        index=range(size),
        label=[0] * size,
        predicted=[0] * size,
        verdict=verdicts,
        margin=[0.0] * size,
        seconds=[0.01] * size,
        proved_by=["crown" if one is V else "" for one in verdicts],
    )


def facts(
    name: str, training: str = "ibp", *, seed: int = 0, history: int = 3, pictures: int = 0, **recipe: str
) -> RunFacts:
    draw = np.random.default_rng(0)
    epochs = pd.DataFrame({"epoch": range(1, history + 1)}).astype(float)
    for column in ("eps", "weight", "lr", "loss", "val_clean", "val_vra", "seconds"):
        epochs[column] = 0.5
    images = draw.random((pictures, 3, 8, 8), dtype=np.float32)
    labels = np.arange(pictures)
    return RunFacts(
        name=name,
        training=training,
        train_eps=math.nan if training in ("", "natural") else 0.1,
        dataset="digits",
        model="mlp",
        seed=seed,
        train_seconds=12.5 if history else math.nan,
        hardware="2 CPU cores",
        history=epochs if history else pd.DataFrame(),
        examples=Pictures(images, 1 - images, labels, labels + 1) if pictures else None,
        recipe=recipe,
    )


def two_methods() -> tuple[pd.DataFrame, list[RunFacts]]:
    """Ten samples of two networks: the figures below are counted by hand."""
    table = pd.concat(
        [
            rows("a", "attack", "pgd", [M, F, F, U, U, U, U, U, U, U]),
            rows("a", "attack", "interval-gradient", [M, F, U, F, U, U, U, U, U, U]),
            rows("a", "verify", "cascade", [M, F, F, U, F, U, V, V, V, V]),
            rows("b", "attack", "pgd", [M, M, F, F, F, U, U, U, U, U]),
            rows("b", "attack", "interval-gradient", [M, M, F, F, F, U, U, U, U, U]),
            rows("b", "verify", "cascade", [M, M, F, F, F, U, V, V, V, V]),
        ]
    )
    return table, [facts("a", "ibp"), facts("b", "natural")]


def test_a_verifier_that_attacks_shows_what_it_left() -> None:
    table = rows("a", "verify", "cascade", [M, F, F, U, U, V, V, V, V, V])
    (block,) = compare(table, [facts("a")])
    assert block.rows[0].cells["all attacks"].value == pytest.approx(0.7)
    assert block.rows[0].cells["undecided"].value == pytest.approx(0.2)
    table = rows("a", "verify", "crown", [M, U, U, U, U, V, V, V, V, V])
    (block,) = compare(table, [facts("a")])
    assert "all attacks" not in block.columns


def test_what_floating_point_alone_proves_stands_in_a_column_of_its_own(tmp_path: Path) -> None:
    table = pd.concat(
        [
            rows("a", "attack", "pgd", [M, F, U, U, U, U, U, U, U, U]),
            rows("a", "verify", "ibp", [M, U, U, P, P, V, V, U, U, U]),
            rows("a", "verify", "crown", [M, U, U, P, P, P, V, P, U, U]),
            rows("b", "attack", "pgd", [M, F, U, U, U, U, U, U, U, U]),
            rows("b", "verify", "ibp", [M, U, U, U, U, V, V, V, U, U]),
            rows("b", "verify", "crown", [M, U, U, U, U, V, V, V, U, U]),
        ]
    )
    runs = [facts("a", "ibp"), facts("b", "natural")]
    (block,) = compare(table, runs)
    first, second = ({name: cell.value for name, cell in row.cells.items()} for row in block.rows)
    figures = ("certified (ibp)", "certified (crown)", "certified", "certified (float)", "undecided")
    assert [first[name] for name in figures] == pytest.approx([0.2, 0.1, 0.2, 0.3, 0.3])
    assert [second[name] for name in figures] == pytest.approx([0.3, 0.3, 0.3, 0.0, 0.5])
    assert block.columns.index("certified (float)") == block.columns.index("certified") + 1
    assert not any(row.cells["certified (float)"].best for row in block.rows), "more of it is not better"
    write_report(table, runs, tmp_path, title="A title")
    for name in ("comparison.txt", "comparison.md", "comparison.csv", "comparison.tex", "report.html"):
        assert "certified (float)" in (tmp_path / name).read_text(encoding="utf-8"), name
    for name in ("comparison.txt", "comparison.md", "comparison.tex", "report.html"):
        text = " ".join((tmp_path / name).read_text(encoding="utf-8").split())
        assert "proved in addition, but in floating point only" in text, name
    assert "dotted: with what floating point alone proves" in (tmp_path / "report.html").read_text(encoding="utf-8")
    (clean,) = compare(table[table["run"] == "b"], runs[1:])
    assert "certified (float)" not in clean.columns and "float" not in clean.caption


def test_a_single_verifier_has_its_float_column_too() -> None:
    (block,) = compare(rows("a", "verify", "crown", [M, U, P, P, P]), [facts("a")])
    assert block.columns == ("clean", "certified", "certified (float)", "training s")
    assert block.rows[0].cells["certified"].value == 0.0
    assert block.rows[0].cells["certified (float)"].value == pytest.approx(0.6)


def test_recipes_are_not_averaged_as_if_they_were_seeds() -> None:
    table, _ = two_methods()
    (block,) = compare(
        table, [facts("a", "mixtrain", k="1", mixing="0.8"), facts("b", "mixtrain", k="5", mixing="0.8")]
    )
    assert [row.label for row in block.rows] == ["MixTrain, k=1", "MixTrain, k=5"]
    assert math.isnan(block.rows[0].cells["clean"].deviation)
    (block,) = compare(table, [facts("a", "mixtrain", k="1"), facts("b", "mixtrain", k="1", seed=1)])
    assert [(row.label, row.seeds) for row in block.rows] == [("MixTrain", (0, 1))]
    assert "mean and standard deviation" in block.caption


def test_the_page_says_which_attack_of_a_battery_broke_how_many() -> None:
    battery = rows("a", "attack", "pgd+square", [M, F, F, F, U]).assign(proved_by=["", "square", "pgd", "square", ""])
    single = rows("a", "attack", "pgd", [M, F, F, F, U])
    page = as_page("A title", [], [], pd.concat([battery, single]), [])
    assert page.count('<td class="left">square 2, pgd 1</td>') == 1
    assert "unknown 2" not in page, "what no attack broke is settled by nothing"


def test_figures_are_those_counted_by_hand() -> None:
    (block,) = compare(*two_methods())
    assert block.n == 10
    expected = {
        "clean": (0.9, 0.8),
        "pgd": (0.7, 0.5),
        "interval-gradient": (0.7, 0.5),
        "all attacks": (0.5, 0.5),  # of the first network, two attacks and a verifier's counterexample break four
        "certified": (0.4, 0.4),
        "undecided": (0.1, 0.1),
    }
    for column, values in expected.items():
        assert column in block.columns
        assert tuple(row.cells[column].value for row in block.rows) == pytest.approx(values), column


def test_the_best_is_marked_and_ties_are_marked_alike() -> None:
    (block,) = compare(*two_methods())
    first, second = block.rows
    assert first.cells["clean"].best
    assert not second.cells["clean"].best
    assert first.cells["certified"].best
    assert second.cells["certified"].best
    assert not first.cells["training s"].best
    table, runs = two_methods()
    (alone,) = compare(table[table["run"] == "a"], runs[:1])
    assert not any(cell.best for row in alone.rows for cell in row.cells.values())


def test_intervals_are_wilsons() -> None:
    table = rows("a", "attack", "pgd", [U] * 90 + [F] * 10)
    (block,) = compare(table, [facts("a")])
    cell = block.rows[0].cells["pgd"]
    assert (cell.low, cell.high) == pytest.approx((0.8256, 0.9448), abs=1e-4)
    assert "[82.6, 94.5]" in as_markdown([block], "title")


def test_several_seeds_give_mean_and_deviation() -> None:
    table = pd.concat(
        [rows("a", "attack", "pgd", [U] * 8 + [F] * 2), rows("b", "attack", "pgd", [U] * 6 + [F] * 4, seed=1)]
    )
    (block,) = compare(table, [facts("a"), facts("b", seed=1)])
    (row,) = block.rows
    assert row.seeds == (0, 1)
    assert row.cells["pgd"].value == pytest.approx(0.7)
    assert row.cells["pgd"].deviation == pytest.approx(math.sqrt(0.02))
    assert "70.0 ± 14.1" in as_text([block])
    assert "2 seeds (0, 1)" in block.caption


def test_every_output_says_the_seeds_and_how_many() -> None:
    verdicts = [[U] * 8 + [F] * 2, [U] * 6 + [F] * 4, [U] * 7 + [F] * 3]
    table = pd.concat([rows(f"a{seed}", "attack", "pgd", one, seed=seed) for seed, one in enumerate(verdicts)])
    runs = [facts(f"a{seed}", seed=seed) for seed in range(3)]
    (block,) = compare(table, [replace(run, train_seconds=10.0 + 2 * run.seed) for run in runs])
    for text in (as_text([block]), as_markdown([block], "title"), as_latex([block]).replace(r"$\pm$", "±")):
        flat = " ".join(text.split())
        assert "N = 10 test samples, 3 seeds (0, 1, 2); accuracy in" in flat
        assert "mean and standard deviation over seeds;" in flat
        assert "70.0 ± 10.0" in flat
        assert "12 ± 2" in flat  # seconds of training
        assert "[" not in flat  # no interval of one network beside a mean over several
    line = next(line for line in as_csv([block]).splitlines() if ",pgd," in line).split(",")
    assert line[5] == "0 1 2"
    assert [float(one) for one in (line[7], line[10], line[11], line[12])] == pytest.approx([0.7, 0.1, 10, 3])


def test_rows_on_different_numbers_of_seeds_say_so() -> None:
    table = pd.concat([rows(name, "attack", "pgd", [U] * 8 + [F] * 2) for name in ("a", "b", "c")])
    (block,) = compare(table, [facts("a"), facts("b", seed=1), facts("c", "natural")])
    assert "standard deviation over seeds, 95 % Wilson intervals where there is one" in block.caption
    lines = as_text([block]).splitlines()
    assert [line.split()[1] for line in lines if line.startswith(("training", "IBP", "Natural"))] == ["seeds", "2", "1"]


def test_a_figure_that_some_seeds_lack_says_how_many_have_it() -> None:
    table = pd.concat(
        [
            rows("a", "attack", "pgd", [U] * 4),
            rows("b", "attack", "pgd", [U] * 4, seed=1),
            rows("b", "verify", "ibp", [V, V, V, U], seed=1),
        ]
    )
    (block,) = compare(table, [facts("a"), facts("b", seed=1)])
    assert "100.0 ± 0.0" in as_text([block])
    assert "75.0 (1 of 2 runs)" in as_text([block])


def test_recipes_rise_by_the_options_that_tell_them_apart() -> None:
    runs = [
        facts("e", "natural"),
        facts("a", "sabr", alpha="10", k="1"),
        facts("b", "sabr", seed=1, alpha="0.5", k="1"),
        facts("c", "sabr", alpha="1e-2", k="1"),
        facts("d", "sabr", alpha="0.5", k="1"),
        facts("f", "ibp"),
    ]
    found = [(label, [run.name for run in group]) for label, group in recipes(runs)]
    assert found == [
        ("Natural", ["e"]),
        ("SABR, alpha=1e-2", ["c"]),
        ("SABR, alpha=0.5", ["d", "b"]),
        ("SABR, alpha=10", ["a"]),
        ("IBP", ["f"]),
    ]


def test_training_is_drawn_once_for_all_seeds_and_in_figures_of_a_few(tmp_path: Path) -> None:
    runs = [facts(f"a{seed}", seed=seed) for seed in range(3)]
    figure = plot_training(recipes(runs))
    assert [len(axes.lines) for axes in figure.axes] == [8, 4, 4, 4]  # three seeds and their mean, twice in the first
    several = [facts(f"b{alpha}", "sabr", alpha=str(alpha), pictures=1) for alpha in range(8)]
    table = pd.concat([rows(run.name, "attack", "pgd", [U, F]) for run in [*runs, *several]])
    write_report(table, [*runs, *several], tmp_path, title="title")
    names = {path.stem for path in (tmp_path / "plots").iterdir()}
    assert {"training-1", "training-2"} <= names
    assert len([name for name in names if name.startswith("examples")]) == 8


def test_an_evaluation_of_more_samples_replaces_one_of_fewer_and_says_its_n() -> None:
    few = rows("a", "attack", "pgd", [F] * 4)
    few["settings"] = "pgd(steps=1)"
    table = pd.concat([few, rows("a", "attack", "pgd", [U] * 10), rows("a", "verify", "cascade", [V] * 5)])
    (block,) = compare(table, [facts("a")])
    assert block.rows[0].cells["pgd"].value == 1.0
    assert "100.0 (N=5)" in as_text([block])


def test_what_was_not_measured_is_a_dash() -> None:
    table = pd.concat([rows("a", "attack", "pgd", [U] * 4), rows("b", "verify", "ibp", [V] * 4)])
    (block,) = compare(table, [facts("a"), facts("b", "natural", history=0)])
    lines = as_text([block]).splitlines()
    assert all("–" in line for line in lines if line.startswith(("IBP", "Natural")))


def test_several_verifiers_stand_beside_their_union() -> None:
    table = pd.concat([rows("a", "verify", "ibp", [V, U, U, U]), rows("a", "verify", "crown", [U, V, V, U])])
    (block,) = compare(table, [facts("a")])
    cells = block.rows[0].cells
    assert [cells[name].value for name in ("certified (ibp)", "certified (crown)", "certified")] == [0.25, 0.5, 0.75]


def test_two_radii_are_two_blocks() -> None:
    table = pd.concat([rows("a", "attack", "pgd", [U] * 4, eps=eps) for eps in (0.2, 8 / 255)])
    blocks = compare(table, [facts("a")])
    assert [block.caption.split("eps ")[1].split(",")[0] for block in blocks] == ["8/255", "0.2"]


def test_renderers_escape_and_keep_precision() -> None:
    table = rows("50%_run&|", "attack", "pgd", [U, U, F])
    (block,) = compare(table, [facts("50%_run&|", "", history=0)])
    latex = as_latex([block])
    assert r"50\%\_run\&|" in latex
    assert all(word in latex for word in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert r"50%_run&\|" in as_markdown([block], "title")
    lines = as_csv([block]).splitlines()
    assert float(next(line for line in lines if ",pgd," in line).split(",")[7]) == 2 / 3


def test_the_terminal_table_fits_a_hundred_columns() -> None:
    methods = ["natural", "pgd", "ibp", "mixtrain"]
    parts = [
        rows(name, kind, method, [U] * 3 + [V if kind == "verify" else U])
        for name in methods
        for kind, method in (("attack", "pgd"), ("attack", "interval-gradient"), ("verify", "cascade"))
    ]
    text = as_text(compare(pd.concat(parts), [facts(name, name) for name in methods]))
    assert max(map(len, text.splitlines())) <= 100
    assert "N = 4 test samples" in text.replace("\n", " ")


def test_everything_is_written_and_the_plots_are_the_same_each_time(tmp_path: Path) -> None:
    table, runs = two_methods()
    runs = [facts("a", "ibp", pictures=9), runs[1]]
    written = write_report(table, runs, tmp_path / "one", title="A title")
    write_report(table, runs, tmp_path / "two", title="A title")
    assert written[0].name == "comparison.txt"
    names = {path.name for path in (tmp_path / "one").rglob("*") if path.is_file()}
    assert {"comparison.md", "comparison.csv", "comparison.tex", "report.html", "training.png", "training.pdf"} <= names
    assert any(name.startswith("band") for name in names)
    assert any(name.startswith("examples") for name in names)
    for path in (tmp_path / "one").rglob("*"):
        if path.is_file():
            assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes(), path.name


def test_the_page_needs_nothing_from_elsewhere_and_escapes_what_it_shows(tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>"
    table = rows(evil, "attack", "pgd", [U, F])
    (*_, page) = write_report(table, [facts(evil, "", history=0)], tmp_path, title=evil)
    text = page.read_text()
    assert "<script" not in text
    assert "http://" not in text
    assert "https://" not in text
    assert "data:image/png;base64," in text


def test_contradictory_results_are_not_reported(tmp_path: Path) -> None:
    table = pd.concat([rows("a", "attack", "pgd", [F, U]), rows("a", "verify", "ibp", [V, U])])
    with pytest.raises(SoundnessError, match="sample 0 of digits is verified"):
        write_report(table, [facts("a")], tmp_path / "out", title="title")
    assert not (tmp_path / "out").exists()


def test_reports_need_neither_torch_nor_a_plotting_state() -> None:
    code = "import sys, robustkit.reports; print('torch' in sys.modules, 'matplotlib.pyplot' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
