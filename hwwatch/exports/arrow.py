"""Timelines as Parquet and Feather files, written piece by piece by pyarrow."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from hwwatch.exports.values import is_objects, plain
from hwwatch.letters import encodable

#: Dtypes, or kinds of them, that come back from both formats; of times, Parquet has no whole seconds.
NATIVE = ("b", "i", "u", "f", "m", "datetime64[ms]", "datetime64[us]", "datetime64[ns]")
#: Where pandas looks for `DataFrame.attrs` in a Parquet file.
ATTRS = b"PANDAS_ATTRS"


def write_parquet(frames: Iterator[pd.DataFrame], path: Path) -> int:
    """A row group for each piece. Returns the number of hits."""
    from pyarrow import parquet

    def begin(schema: Any) -> Any:
        return parquet.ParquetWriter(path, schema, compression="zstd")

    return _write(frames, begin, empty=False)


def write_feather(frames: Iterator[pd.DataFrame], path: Path) -> int:
    """Feather, version 2, which is an Arrow file: a record batch for each piece."""
    import pyarrow as pa

    # Categories only grow from one piece to the next; the file holds what each adds.
    options = pa.ipc.IpcWriteOptions(compression="lz4", emit_dictionary_deltas=True)

    def begin(schema: Any) -> Any:
        return pa.ipc.new_file(str(path), schema, options=options)

    return _write(frames, begin, empty=True)


def _write(frames: Iterator[pd.DataFrame], begin: Callable[[Any], Any], *, empty: bool) -> int:
    """All pieces; an empty first one too, where the format needs it."""
    rows, writer, schema = 0, None, None
    try:
        for frame in frames:
            attrs = frame.attrs
            frame = plain(frame, NATIVE)
            if writer is None:
                schema = _schema(frame, attrs)
                writer = begin(schema)
            if len(frame) or (empty and not rows):
                writer.write_table(_table(frame, schema))
            rows += len(frame)
    finally:
        if writer is not None:
            writer.close()
    return rows


def _schema(frame: pd.DataFrame, attrs: dict[Any, Any]) -> Any:
    """Types of the columns, and what pandas wants to know to make the same frame of them."""
    import pyarrow as pa

    bare = frame.copy(deep=False)
    bare.attrs = {}
    guessed = pa.Schema.from_pandas(bare, preserve_index=True)
    metadata = dict(guessed.metadata)
    if attrs:
        metadata[ATTRS] = json.dumps(attrs, default=str).encode()
    fields = []
    for field in guessed:
        kind = field.type
        if field.name in frame.columns:
            dtype = frame[field.name].dtype
            if isinstance(dtype, pd.CategoricalDtype):
                kind = pa.dictionary(pa.int32(), pa.string())
            elif is_objects(dtype):  # the first piece may have none of the texts to come
                kind = pa.string()
        fields.append(pa.field(field.name, kind))
    return pa.schema(fields, metadata)


def _table(frame: pd.DataFrame, schema: Any) -> Any:
    import pyarrow as pa

    columns = []
    for field in schema:
        series = frame[field.name] if field.name in frame.columns else frame.index.to_series()
        if isinstance(series.dtype, pd.CategoricalDtype):
            codes = pa.array(series.cat.codes, pa.int32(), mask=(series.cat.codes < 0).to_numpy())
            labels = pa.array([encodable(str(label)) for label in series.cat.categories], pa.string())
            columns.append(pa.DictionaryArray.from_arrays(codes, labels))
        else:
            # NaN is a value like others: it may be what somebody looks for.
            columns.append(pa.array(series, field.type, from_pandas=series.dtype.kind != "f"))
    return pa.Table.from_arrays(columns, schema=schema)
