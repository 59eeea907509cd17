"""Lists that stand in one cell of a table as text, as JSON, Python, pandas and NumPy write them."""

import ast
import json
import re

_STRING = r"""'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*\""""
_NOTHING = r"None|null|nan|NaN|<NA>"
_MEMBER = re.compile(rf"(?:np\.str_\((?P<scalar>{_STRING})\)|[uU]?(?P<string>{_STRING})|{_NOTHING})")
_SEPARATOR = re.compile(r"\s*,\s*|\s+")  # NumPy writes no comma, and begins a new line after 75 characters
_ARRAY = re.compile(r"(?:np\.)?array\((.*?)(?:,\s*dtype=[^,()]+)?\)", re.DOTALL)
_CLOSING = {"[": "]", "(": ")", "{": "}"}
# Two members at the beginning, quotes at both ends, quotes that no bracket closes, or objects: captions may begin with
# a bracket or a quotation, but not so.
_LOOKS_LIKE_LIST = re.compile(
    rf"""
    (?:(?:np\.)?array\()? (?:  # of which the end may be cut off
        [\[(]+ \s* [uUbB]? (?:{_STRING}) (?:\s*,\s*|\s+) (?:[uUbB]?['"]|{_NOTHING}|[\[(\d-]) .*
        | [\[(]+ \s* (?:[uUbB]?['"]|np\.str_\().* ['"] [\])]+
        | \[ \s* [uUbB]?['"] [^\]]*
        | \[ \s* \{{ .* \}} \s* \]
    )""",
    re.VERBOSE | re.DOTALL,
)


def written_list(text: str) -> list | None:
    """The members of a list that is written as a text; None where the text is anything else.

    The members are strings, None, and in JSON anything. A text that looks like a list and cannot be read, such as one
    that was cut off, is given as a list in the list.
    """
    text = text.strip()
    if text.startswith("["):
        try:
            members = json.loads(text)
        except (ValueError, RecursionError):
            pass
        else:
            return None if members and all(isinstance(member, int | float) for member in members) else members
    array = _ARRAY.fullmatch(text)
    inside = array[1].strip() if array else text
    members = _members(inside)
    return [[text]] if members is None and _LOOKS_LIKE_LIST.fullmatch(inside) else members


def _members(text: str) -> list[str | None] | None:
    """The members of a list, a tuple or a set of strings, by hand: Python would join `'a' 'b'` to one."""
    if text[:1] not in _CLOSING or text[-1:] != _CLOSING[text[0]] or text == "{}":
        return None
    inner, members, position = text[1:-1].strip(), [], 0
    while position < len(inner):
        member = _MEMBER.match(inner, position)
        separator = member and (_SEPARATOR.match(inner, member.end()) or member.end() == len(inner))
        if not separator:
            return None
        string = member["scalar"] or member["string"]
        try:
            members.append(None if string is None else ast.literal_eval(string))
        except (ValueError, SyntaxError):  # an escape that means nothing
            return None
        position = len(inner) if separator is True else separator.end()
    return members
