"""Rows written as files of the kinds that are read."""

import json
from pathlib import Path

import pyarrow
import pyarrow.parquet


def write(path: Path, rows):
    match path.suffix:
        case ".json":
            path.write_text(json.dumps(rows))
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case ".csv":
            lines = [",".join(rows[0]), *(",".join(r.values()) for r in rows)]
            path.write_text("\n".join(lines) + "\n")
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return str(path)
