"""Rows of Parquet files: the columns that are needed, a few rows at a time.

What else is in a row (dates that no calendar has, names that are no UTF-8) is never looked at, and
a small file may be gigabytes once its repetitions are written out.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any, BinaryIO

from rntp_data_prep.packages import module
from rntp_data_prep.page import Options, Page, Tally, Unit
from rntp_data_prep.rows import field_names, row_page
from rntp_data_prep.unpack import Broken, OnDamage

_ROWS = 16  # at a time; a row may have as much as a page
_BUFFER_BYTES = 1 << 20
_DICTIONARY_BYTES = 64 << 20


def parquet_units(
    file: BinaryIO, source: str, options: Options, tally: Tally, on_damage: OnDamage
) -> Iterator[Unit]:
    """The rows of a Parquet file. on_damage: is told of what cannot be read, checksums included,
    which is the end."""
    errors = (OSError, module("pyarrow").ArrowException)
    try:
        parquet = module("pyarrow.parquet")
        settings = {"buffer_size": _BUFFER_BYTES, "page_checksum_verification": True}
        table = parquet.ParquetFile(file, **settings)
        names = _columns(table.schema_arrow, options)
        if not names:
            yield from _without_text(table, source, tally)
            return
        if repeated := _repeated(table, names):
            table = parquet.ParquetFile(file, read_dictionary=repeated, **settings)
        number = 0
        tops = list(dict.fromkeys(name.partition(".")[0] for name in names))
        for rows in table.iter_batches(batch_size=_ROWS, columns=names, use_threads=False):
            first = {rows.schema.names[n]: n for n in reversed(range(rows.num_columns))}
            columns = {name: rows.column(first[name]) for name in (*names, *tops) if name in first}
            for n in range(rows.num_rows):
                number += 1
                row = {name: _value(column[n]) for name, column in columns.items()}
                yield partial(row_page, row, f"{source}#{number}", source, options, tally)
    except errors as error:
        on_damage(Broken(f"cannot be read as Parquet: {error}"))


def _columns(schema: Any, options: Options) -> list[str]:
    """The columns that a page is made of; none where there is no text."""
    html, text = field_names(options)
    found = [name for name in (*html, *text) if _is_there(schema, name)]
    return [*found, *(n for n in ("url", "title") if n in schema.names)] if found else []


def _repeated(table: Any, names: list[str]) -> list[str]:
    """The columns whose values are written once for all rows that have them: written out for every
    row, kilobytes would become gigabytes."""
    metadata = table.metadata
    chunks = [
        metadata.row_group(group).column(n)
        for group in range(metadata.num_row_groups)
        for n in range(metadata.num_columns)
    ]
    large = {
        chunk.path_in_schema
        for chunk in chunks
        if not chunk.has_dictionary_page or chunk.total_uncompressed_size > _DICTIONARY_BYTES
    }
    texts = {chunk.path_in_schema for chunk in chunks if chunk.physical_type == "BYTE_ARRAY"}
    return [name for name in names if name in texts - large]


def _is_there(schema: Any, name: str) -> bool:
    if name in schema.names:
        return True
    first, *inner = name.split(".")
    if first not in schema.names:
        return False
    kind = schema.types[schema.names.index(first)]
    for part in inner:
        if not module("pyarrow").types.is_struct(kind) or kind.get_field_index(part) < 0:
            return False
        kind = kind.field(part).type
    return True


def _without_text(file: Any, source: str, tally: Tally) -> Iterator[Unit]:
    for field in file.schema_arrow:
        inner = field.type if module("pyarrow").types.is_struct(field.type) else ()
        tally.fields |= dict.fromkeys([f"{field.name}.{f.name}" for f in inner] or [field.name])
    for number in range(1, file.metadata.num_rows + 1):
        yield partial(Page, f"{source}#{number}", source, None, "no_text_field")


def _value(scalar: Any) -> Any:
    """A value as text or bytes, or as a dict of these; None for any other kind."""
    arrow = module("pyarrow")
    if isinstance(scalar, arrow.DictionaryScalar):
        scalar = scalar.value
    if not scalar.is_valid:
        return None
    if isinstance(scalar, arrow.StructScalar):
        return {name: _value(scalar[name]) for name in dict.fromkeys(scalar.type.names)}
    if not isinstance(scalar, arrow.BinaryScalar):
        return None
    data = scalar.as_buffer().to_pybytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data
