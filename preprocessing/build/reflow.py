"""Hard-wrapped lines into paragraphs, and Project Gutenberg's licence cut off.

In mode `auto` a document is re-flowed if it is hard-wrapped: of at least ten lines that are not blank, half or more
have 50 to 80 characters and no more than one in fifty has over 100. That leaves verse and drama as they are.
"""

import re

MODES = ("auto", "on", "off")

_LEAST_LINES = 10
_WRAPPED = range(50, 81)
_LONG = 100
_LONG_SHARE = 1 / 50
_JUDGED_CHARACTERS = 100_000
"""The beginning decides: enough to tell, and cheap for whole books."""
_LICENCE_MARKS = ("PROJECT GUTENBERG", "Project Gutenberg", "SMALL PRINT!")
_HEADER = re.compile(
    r"^(?:\*\*\* ?START OF TH(?:E|IS) PROJECT GUTENBERG .{0,500}?\*\*\*"
    r"|\*END ?\* ?THE SMALL PRINT!.{0,500}?\*END ?\*)[^\n]*\n",
    re.MULTILINE | re.DOTALL | re.IGNORECASE,
)
"""The title in a mark may go over several lines. The second form is that of the texts before 2003."""
_FOOTER = re.compile(
    r"^(?:\*\*\* ?END OF TH(?:E|IS) PROJECT GUTENBERG |End of (?:the |this )?Project Gutenberg(?:'s)? )",
    re.MULTILINE | re.IGNORECASE,
)
_BREAK_AT_HYPHEN = re.compile(r"-\n(?=\S)")
_BREAK = re.compile(r"\n\s*")


def reflow(text: str, mode: str) -> str:
    """Text in the given mode of `MODES`, stripped: off changes nothing, auto and on cut a licence where marks show one.

    Lines are joined up to a blank or indented one; a line that ends in a hyphen or dash is joined without a space.
    """
    if mode == "off":
        return text
    if any(mark in text for mark in _LICENCE_MARKS):
        text = _without_licence(text)
    if mode == "on" or is_hard_wrapped(text):
        text = _BREAK.sub(_joint, _BREAK_AT_HYPHEN.sub("-", text.replace("\r\n", "\n")))
    return text


def is_hard_wrapped(text: str) -> bool:
    """Whether `auto` re-flows this text."""
    lengths = [len(line.strip()) for line in text[:_JUDGED_CHARACTERS].split("\n")]
    lines = len(lengths) - lengths.count(0)
    wrapped = sum(length in _WRAPPED for length in lengths)
    long = sum(length > _LONG for length in lengths)
    return lines >= _LEAST_LINES and 2 * wrapped >= lines and long <= lines * _LONG_SHARE


def _joint(line_break: re.Match[str]) -> str:
    """A space within a paragraph; an indented line begins anew, a blank one parts paragraphs."""
    space = line_break[0]
    return " " if space == "\n" else "\n\n" if "\n" in space[1:] else "\n"


def _without_licence(text: str) -> str:
    if header := _HEADER.search(text):
        text = text[header.end() :]
    if footer := _FOOTER.search(text):
        text = text[: footer.start()]
    return text.strip()
