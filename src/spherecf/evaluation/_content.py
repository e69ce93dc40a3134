"""What a report holds, drawn once and written in three forms."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spherecf.evaluation._parts import Plot, Section, Strip, Table
from spherecf.evaluation._plots import condition_plots
from spherecf.evaluation._result import PairReport, plain
from spherecf.evaluation._tables import Grouped, grouped


@dataclass(frozen=True)
class Content:
    """The arguments of `write_report`, the reports grouped, and their plots."""

    title: str
    reports: Sequence[PairReport] = ()
    sections: Sequence[Section] = ()
    notes: Sequence[str] = ()
    strips: Sequence[Strip] = ()
    tables: Sequence[Table] = ()
    results: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    lists: Grouped = field(init=False)
    plots: dict[str, list[Plot]] = field(init=False)
    """By the anchor of the condition they belong to."""

    def __post_init__(self) -> None:
        lists = grouped(self.reports)
        plots = {
            anchor("list", i, j): condition_plots(runs, anchor("list", i, j))
            for i, conditions in enumerate(lists.values())
            for j, runs in enumerate(conditions.values())
        }
        object.__setattr__(self, "lists", lists)
        object.__setattr__(self, "plots", plots)

    def counted(self) -> str:
        """How much there is, in words."""
        counts = {"pair list": len(self.lists), "result": len(self.reports), "section": len(self.sections)}
        return ", ".join(f"{n} {name}{'s' * (n != 1)}" for name, n in counts.items() if n)

    def to_dict(self, version: str) -> dict[str, Any]:
        """Plain dicts and lists; plots as their words, strips as their captions."""
        return {
            "title": self.title,
            "spherecf": version,
            "notes": list(self.notes),
            "tables": [table.to_dict() for table in self.tables],
            "reports": [report.to_dict() for report in self.reports],
            "sections": [section.to_dict() for section in self.sections],
            "results": plain(dict(self.results)),
            "strips": [strip.to_dict() for strip in self.strips],
            "provenance": plain(dict(self.provenance)),
        }


def anchor(*parts: object) -> str:
    """An id made of our own words and numbers only, never of names from outside."""
    return "-".join(map(str, parts))
