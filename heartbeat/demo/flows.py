"""The flows of `heartbeat demo`: copy this module and change it.

A flow is a class derived from DataFlow with a `run`. The modules that HEARTBEAT_FLOWS names are searched for
such classes; each that has a run_interval gets its row in data_flows when the service starts.
"""

from __future__ import annotations

import asyncio
import csv
import io
import json
import time
from hashlib import sha256
from importlib import metadata
from pathlib import Path

import aiosql

from heartbeat import DataFlow, Settings
from heartbeat.postgres.queries import SHIPPED

# Statements live in .sql files, where a DBA finds them. Yours stand where you like: aiosql.from_path("sql/", …).
sql = aiosql.from_path(SHIPPED / "demo", "psycopg")


class TableSizes(DataFlow):
    """Record how large the database's tables are."""

    run_interval = 4  # seconds

    def run(self) -> dict[str, int]:
        with self.connection() as conn:  # one transaction: commits at the end, rolls back when it raises
            sql.create_table_sizes(conn)
            tables, changed, size = sql.record_table_sizes(conn)
        return {"tables": tables, "changed": changed, "bytes": size}  # kept as the run's result


class InstalledDistributions(DataFlow):
    """Keep an inventory of the Python distributions installed here."""

    run_interval = 10

    def run(self) -> dict[str, int]:
        found: dict[str, str] = {}
        for distribution in metadata.distributions():
            if distribution.name:  # what is left of a half-removed one has none
                found.setdefault(distribution.name.lower(), distribution.version or "")
        with self.connection() as conn:
            sql.create_distributions(conn)
            installed, changed, removed = sql.record_distributions(
                conn, names=list(found), versions=list(found.values())
            )
        return {"installed": installed, "changed": changed, "removed": removed}


class EventLoopLag(DataFlow):
    """Measure how late the event loop is that all async flows share."""

    run_interval = 4

    async def run(self) -> dict[str, float]:
        began = time.monotonic()
        await asyncio.sleep(0.1)
        return {"late_ms": round((time.monotonic() - began - 0.1) * 1000, 2)}


class CountOrders(DataFlow):
    """Count the orders: fails, because nobody has made their table (sql/demo/repair.sql does)."""

    run_interval = 6

    def run(self) -> dict[str, int]:
        with self.connection() as conn:
            return {"orders": sql.count_orders(conn)}


class ImportCsv(DataFlow):
    """Import what was appended to the CSV files of a folder, the configuration's "folder"."""

    run_interval = 2

    def run(self) -> dict[str, int]:
        folder = Path(self.configuration.get("folder") or Settings.load().data_dir / "csv").absolute()
        folder.mkdir(parents=True, exist_ok=True)
        with self.connection() as conn:
            sql.create_csv_tables(conn)
        imported, refused = 0, []
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() == ".csv" and file.is_file())
        for file in files:
            if self.stopping.is_set():  # the process stops, or this run's time is up
                break
            try:
                imported += self.import_file(file)
            except (OSError, ValueError) as exc:  # the other files are imported all the same
                refused.append(f"{file.name}, {exc}")
        if refused:
            raise ValueError(f"{len(refused)} of {len(files)} files refused: {'; '.join(refused)}")
        return {"files": len(files), "rows": imported}

    def import_file(self, file: Path) -> int:
        """Import the rows that are new, in one transaction: each once, or none of them."""
        name, content = str(file), complete_lines(file)
        with self.connection() as conn:
            known, size, checksum = sql.lock_csv_file(conn, file=name)
            if checksum and sha256(content[:size]).hexdigest() != checksum:
                raise ValueError(f"lines 1 to {known}: changed since they were imported; rename the file")
            new = [(line, json.dumps(row)) for line, row in parse(content) if line > known]
            if new:
                sql.add_csv_rows(conn, [{"file": name, "line": line, "data": data} for line, data in new])
                checksum = sha256(content).hexdigest()
                sql.note_csv_file(conn, file=name, lines=new[-1][0], bytes=len(content), sha256=checksum)
        return len(new)


def complete_lines(file: Path) -> bytes:
    """Read a file's finished lines. A last one without its end counts once nobody wrote for two seconds."""
    content = file.read_bytes()
    if content and not content.endswith(b"\n"):
        rests = abs(time.time() - file.stat().st_mtime) > 2
        content = content + b"\n" if rests else content[: content.rfind(b"\n") + 1]
    return content


def parse(content: bytes) -> list[tuple[int, dict[str, str]]]:
    """Return the rows with the line that each ends on. Raises ValueError, which names the line."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = content[: exc.start].count(b"\n") + 1
        raise ValueError(f"line {line}: not UTF-8, {exc.reason}") from exc
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    rows: list[tuple[int, dict[str, str]]] = []
    try:
        for row in filter(None, reader):  # blank lines say nothing
            header = header or row
            named = dict(zip(header, row, strict=False))
            if len(row) != len(header):
                raise ValueError(f"{len(row)} fields, where the header has {len(header)}")
            if len(named) < len(row):
                raise ValueError("two columns have one name")
            if "\0" in "".join(row):
                raise ValueError("a NUL character")
            rows.append((reader.line_num, named))
    except (ValueError, csv.Error) as exc:
        raise ValueError(f"line {reader.line_num}: {exc}") from exc
    return rows[1:]
