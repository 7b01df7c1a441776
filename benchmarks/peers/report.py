"""What a figure found: a table for the terminal and for documents, and all of it as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table

from benchmarks.figures import machine


@dataclass(slots=True)
class Report:
    """One figure."""

    title: str
    columns: Sequence[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    """Lines below the table."""
    found: dict[str, Any] = field(default_factory=dict)
    """Every number, for `--json`."""
    good: bool = True
    """Whether it could be made as it should; a missed target is good, different labels are not."""

    def table(self) -> Table:
        """For the terminal."""
        table = Table(title=self.title, caption="\n".join(self.notes), caption_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in self.rows:
            style = "green" if "met" in row else "yellow" if "missed" in row else None
            table.add_row(*row, style=style)
        return table

    def markdown(self) -> str:
        """For the documents."""
        head = ["| " + " | ".join(self.columns) + " |", "| --- |" + " ---: |" * (len(self.columns) - 1)]
        rows = ["| " + " | ".join(row) + " |" for row in self.rows]
        notes = [f"- {note}" for note in self.notes]
        return "\n".join([f"**{self.title}**", "", *head, *rows, "", *notes]) + "\n"

    def as_json(self) -> dict[str, Any]:
        """All of it, with the machine."""
        return {"title": self.title, **self.found, "notes": self.notes, "machine": machine()}
