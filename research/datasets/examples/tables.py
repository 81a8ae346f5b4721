"""Tables: Parquet and CSV files, as pyarrow reads them."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from research.datasets.examples.columns import (
    Column,
    Text,
    require_arrays_fit,
    require_names,
    to_tensor,
)
from research.errors import UserError

DELIMITERS = ",;\t"


def import_arrow(path: Path) -> Any:
    """pyarrow with the modules that are needed here; ``Any``, since it has no types.

    Raises:
        UserError: it is not installed.

    """
    try:
        import pyarrow
        import pyarrow.compute
        import pyarrow.csv
        import pyarrow.parquet
    except ImportError as error:
        raise UserError(f"{path} needs an extra: pip install -e '.[parquet]'") from error
    return pyarrow


def read_parquet(path: Path, names: Sequence[str]) -> dict[str, Column]:
    """Columns of numbers or text, or of lists of one length."""
    arrow = import_arrow(path)
    file = arrow.parquet.ParquetFile(path)
    require_names(path, names, file.schema_arrow.names)
    groups = [file.metadata.row_group(index) for index in range(file.metadata.num_row_groups)]
    chunks = [group.column(index) for group in groups for index in range(group.num_columns)]
    starts = tuple(f"{name}." for name in names)
    wanted = [chunk for chunk in chunks if f"{chunk.path_in_schema}.".startswith(starts)]
    require_arrays_fit(
        path, sum(chunk.num_values * np.dtype(np.float64).itemsize for chunk in wanted)
    )
    table = file.read(columns=list(dict.fromkeys(names)))
    return {name: to_column(table.column(name), path, name, "example {}".format) for name in names}


def read_csv(path: Path, names: Sequence[str]) -> dict[str, Column]:
    """Columns of numbers or text, separated by the one of ``DELIMITERS`` that the header has most.

    Raises:
        UserError: a column has both numbers and text.

    """
    arrow = import_arrow(path)
    with path.open(newline="", encoding="utf-8-sig", errors="replace") as file:
        header = file.readline()
    delimiter = max(DELIMITERS, key=header.count)
    require_names(path, names, next(csv.reader([header], delimiter=delimiter), []))
    require_arrays_fit(path, 4 * path.stat().st_size)  # a digit and a comma become eight bytes
    text = arrow.string()
    table = arrow.csv.read_csv(
        path,
        parse_options=arrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=arrow.csv.ConvertOptions(
            column_types=dict.fromkeys(names, text), include_columns=list(dict.fromkeys(names))
        ),
    )

    def row(index: int) -> str:
        """The row as a spreadsheet counts it, where the header is the first."""
        return f"row {index + 2}"

    columns = {}
    for name in names:
        column = arrow.compute.utf8_trim_whitespace(table.column(name))
        is_gap = arrow.compute.equal(column, "")
        column = arrow.compute.if_else(is_gap, arrow.scalar(None, text), column)
        columns[name] = to_column(parse(column, path, name, row), path, name, row)
    return columns


def parse(column: Any, path: Path, name: str, row: Callable[[int], str]) -> Any:
    """A column of strings as a column of numbers, if all of them are numbers.

    Raises:
        UserError: some are numbers, and some are not.

    """
    for kind in ("int64", "float64"):
        try:
            return column.cast(kind)
        except ValueError:  # pyarrow's error for what it cannot parse is one
            continue
    values = column.to_pylist()
    numbers = [index for index, value in enumerate(values) if value and is_number(value)]
    if not numbers:
        return column
    other = next(i for i, value in enumerate(values) if value and not is_number(value))
    raise UserError(
        f"{path}: column '{name}' has '{values[other]}' in {row(other)}, which is no number, but "
        f"'{values[numbers[0]]}' in {row(numbers[0])}"
    )


def is_number(text: str) -> bool:
    """Whether ``text`` can be read as a number."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def to_column(column: Any, path: Path, name: str, place: Callable[[int], str]) -> Column:
    """A column of pyarrow as numbers or text.

    Args:
        column: a chunked array.
        path: of its file.
        name: of the column.
        place: names an example in error messages.

    Raises:
        UserError: it has gaps, or lists of several lengths, or neither numbers nor text.

    """
    arrow = import_arrow(path)
    if column.null_count:
        first = place(arrow.compute.index(column.is_null(), True).as_py())
        raise UserError(
            f"{path}: column '{name}' has {column.null_count} gaps, the first in {first}; fill "
            "them, or remove these examples"
        )
    if arrow.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if "list" in str(column.type):
        lengths = arrow.compute.list_value_length(column).unique().to_pylist()
        values = arrow.compute.list_flatten(column)
        if len(lengths) > 1 or values.null_count:
            raise UserError(f"{path}: the lists of column '{name}' differ in length, or have gaps")
        return to_tensor(values.to_numpy().reshape(len(column), *lengths), path, name)
    if "string" in str(column.type):
        words = column.unique()
        indices = arrow.compute.index_in(column, value_set=words).to_numpy()
        known = words.to_pylist()
        first = f"'{known[0]}' in {place(0)}" if known else ""
        return Text(known, torch.from_numpy(indices.astype(np.int64)), first)
    return to_tensor(column.to_numpy(), path, name)
