"""Lists of ids, one a line, as people and spreadsheets write them."""

from __future__ import annotations

from embedkit.errors import DataError


def read_ids(content: bytes, name: str) -> list[str]:
    """The lines of a list of ids: UTF-8 with or without a byte order mark, line ends of any system. The last line may end or not.

    Raises DataError for bytes that are no UTF-8, and for a carriage return inside a line, which no id can hold."""
    try:
        text = content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise DataError(f"{name} is not UTF-8 ({error}); write one id a line in UTF-8.") from None
    if "\r" in text and "\n" not in text:  # of old systems
        text = text.replace("\r", "\n")
    if (place := text.find("\r")) >= 0:
        line = text.count("\n", 0, place) + 1
        raise DataError(f"{name}, line {line}: a carriage return stands inside the line; write one id a line.")
    return text.removesuffix("\n").split("\n") if text else []
