"""Text files as editors and spreadsheets leave them: UTF-8 or UTF-16."""

import codecs


def decoded(contents: bytes) -> str:
    """The text of a file in UTF-8 or UTF-16, without its byte-order mark.

    Raises:
        UnicodeDecodeError: it is in neither.

    Example:

    >>> decoded("one".encode("utf-16")), decoded(b"one")
    ('one', 'one')
    """
    return contents.decode(encoding(contents))


def encoding(contents: bytes) -> str:
    """The name of the encoding that a file's first bytes speak of."""
    if contents.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Without a mark: one byte of the first letter is 0.
    if contents[1:2] == b"\0":
        return "utf-16-le"
    return "utf-16-be" if contents[:1] == b"\0" else "utf-8-sig"


def utf_8(contents: bytes) -> bytes:
    """A file's bytes as UTF-8 without a byte-order mark; those that cannot be decoded stay.

    >>> utf_8("one".encode("utf-16"))
    b'one'
    """
    name = encoding(contents)
    if name == "utf-8-sig":
        return contents.removeprefix(codecs.BOM_UTF8)
    return contents.decode(name, "replace").encode()
