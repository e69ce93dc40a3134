import dataclasses
import io

from rich.console import Console
from tests.evaluation.conftest import Toy

from spherecf.report import Table, rich_table, terminal_table


def terminal_text(*reports: object, width: int = 100) -> str:
    stream = io.StringIO()
    Console(file=stream, width=width).print(terminal_table(list(reports)))
    return stream.getvalue()


def test_rows_counts_and_unresolved_targets_are_shown(toy: Toy) -> None:
    report = toy.report(draws=20)
    text = terminal_text(report)
    for result in report.scores.values():
        assert result.score in text and f"{result.accuracy.value:.4f}" in text
    assert "200 mated" in text and "unresolved: FMR 0.001 needs at least 1000" in text.replace("\n", " ")
    assert "subject-20/0" in text and "detector_score" in text


def test_names_are_not_markup_and_fit_eighty_columns(toy: Toy) -> None:
    report = dataclasses.replace(toy.report(draws=20), name="[bold]x[/oops]", condition="[red]", label="[/]")
    text = terminal_text(report, width=80)
    assert "[bold]x[/oops]" in text and "[red]" in text and "…" not in text
    assert max(map(len, text.splitlines())) <= 80


def test_intervals_are_below_their_values_and_fit_eighty_columns() -> None:
    cells = ["0.8500 [0.820, 0.874]", "+0.012 [-0.003, +0.020] *", "1.0000 [0.999, 1.000]"]
    table = Table("T", ["row", *(f"≤ 1e-{i}" for i in range(6))], [["kappa [mls]", *cells, *cells]])
    stream = io.StringIO()
    Console(file=stream, width=80).print(rich_table(table))
    text = stream.getvalue()
    assert "kappa [mls]" in text  # neither an interval nor markup
    assert ".820 .874" in text and "-.003 +.020 *" in text and ".999 1" in text
    assert max(map(len, text.splitlines())) <= 80
