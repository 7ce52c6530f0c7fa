import math
import re
from pathlib import Path

import pandas as pd
import pytest

from robustkit.errors import RobustkitError, SoundnessError
from robustkit.results import Subject, check_coherence, evaluation_table, read_table, summarise, write_table
from robustkit.verdict import Verdict

SUBJECT = Subject("toy", "abc", "natural", math.nan, "digits", 0)


def table(kind: str, method: str, eps: float, *verdicts: Verdict) -> pd.DataFrame:
    n = len(verdicts)
    return evaluation_table(
        SUBJECT,
        kind,
        method,
        f"{method}()",
        eps=eps,
        index=range(n),
        label=[0] * n,
        predicted=[0] * n,
        verdict=list(verdicts),
        margin=[math.nan] * n,
        seconds=[0.5] * n,
    )


def test_a_table_survives_the_disk(tmp_path: Path) -> None:
    before = table("verify", "ibp", 0.1, Verdict.VERIFIED, Verdict.UNKNOWN)
    write_table(before, tmp_path / "deep" / "table.csv")
    after = read_table(tmp_path / "deep" / "table.csv")
    pd.testing.assert_frame_equal(before, after)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["table.csv"]


def test_figures_are_derived_from_the_rows() -> None:
    attacked = table("attack", "pgd", 0.1, Verdict.MISCLASSIFIED, Verdict.FALSIFIED, Verdict.UNKNOWN, Verdict.UNKNOWN)
    verified = table("verify", "ibp", 0.1, Verdict.MISCLASSIFIED, Verdict.UNKNOWN, Verdict.UNKNOWN, Verdict.VERIFIED)
    figures = summarise(pd.concat([attacked, verified])).set_index("method")
    assert figures.loc["pgd", ["n", "clean", "robust", "seconds"]].tolist() == [4, 0.75, 0.5, 2.0]
    assert figures.loc["ibp", ["n", "clean", "robust", "unknown"]].tolist() == [4, 0.75, 0.25, 0.5]


def test_what_floating_point_alone_proves_is_counted_apart() -> None:
    verdicts = [Verdict.MISCLASSIFIED, Verdict.VERIFIED_FLOAT, Verdict.VERIFIED_FLOAT, Verdict.VERIFIED]
    figures = summarise(table("verify", "ibp", 0.1, *verdicts)).iloc[0]
    assert figures[["clean", "robust", "float", "falsified", "unknown"]].tolist() == [0.75, 0.25, 0.5, 0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "proved_by", "verdict"),
    [
        ("BoundVerifier(bound=<BoundMethod.IBP: 'ibp'>)", "ibp", "verified (float)"),
        ("BoundVerifier(bound=<BoundMethod.IBP: 'ibp'>, recheck=True)", "ibp", "verified"),
        ("Cascade(attack='pgd', bounds=(<BoundMethod.IBP: 'ibp'>,))", "ibp", "verified (float)"),
        ("Complete(attack='pgd', timeout=60.0, batch=256, recheck=True, certificates='')", "complete", "verified"),
        ("Complete(attack='pgd', timeout=60.0, batch=256)", "complete (float)", "verified (float)"),
        ("YourOwn()", "yours", "verified"),
    ],
)
def test_tables_of_old_claim_only_what_was_checked(settings: str, proved_by: str, verdict: str, tmp_path: Path) -> None:
    old = table("verify", "ibp", 0.1, Verdict.VERIFIED, Verdict.UNKNOWN)
    write_table(old.assign(settings=settings, proved_by=[proved_by, ""]), tmp_path / "table.csv")
    assert read_table(tmp_path / "table.csv")["verdict"].tolist() == [verdict, "unknown"]


@pytest.mark.parametrize(
    ("attack_eps", "outcome"),
    [(0.1, Verdict.FALSIFIED), (0.05, Verdict.FALSIFIED), (0.2, Verdict.MISCLASSIFIED)],
)
def test_verified_and_broken_stops_the_run(attack_eps: float, outcome: Verdict) -> None:
    for proof in (Verdict.VERIFIED, Verdict.VERIFIED_FLOAT):
        both = pd.concat([table("verify", "ibp", 0.1, proof), table("attack", "pgd", attack_eps, outcome)])
        with pytest.raises(SoundnessError, match=re.escape(f"sample 0 of digits is {proof} at eps 0.1 by ibp")):
            check_coherence(both)


def test_broken_at_a_larger_radius_is_no_contradiction() -> None:
    check_coherence(
        pd.concat([table("verify", "ibp", 0.1, Verdict.VERIFIED), table("attack", "pgd", 0.2, Verdict.FALSIFIED)])
    )


def test_bad_tables_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RobustkitError, match="found none"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "foreign.csv").write_text("a,b\n1,2\n")
    with pytest.raises(RobustkitError, match="are missing"):
        read_table(tmp_path / "foreign.csv")
    strange = table("verify", "ibp", 0.1, Verdict.VERIFIED).assign(verdict="sure")
    strange.to_csv(tmp_path / "strange.csv", index=False)
    with pytest.raises(RobustkitError, match="'sure' is unknown"):
        read_table(tmp_path / "strange.csv")


def test_a_folder_that_cannot_be_written_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RobustkitError, match="cannot write"):
        write_table(table("verify", "ibp", 0.1, Verdict.UNKNOWN), tmp_path / "file" / "table.csv")
