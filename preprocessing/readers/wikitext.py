"""Wikitext to the text that a reader of the article sees, headings left out.

mwparserfromhell works in two steps, a tokenizer in C and a builder of node trees in Python. The builder takes six
sevenths of the time; what is wanted here can be read off the flat list of tokens in one pass, so it is not used.
"""

import html
import re
from collections.abc import Collection, Iterator
from typing import Any

from mwparserfromhell.parser import CTokenizer, ParserError, tokens


def _words(listed: str) -> frozenset[str]:
    return frozenset(listed.split())


_OPENING = frozenset(
    {
        tokens.TemplateOpen,
        tokens.ArgumentOpen,
        tokens.WikilinkOpen,
        tokens.ExternalLinkOpen,
        tokens.HeadingStart,
        tokens.CommentStart,
        tokens.TagOpenOpen,
    }
)
_CLOSING = frozenset(
    {
        tokens.TemplateClose,
        tokens.ArgumentClose,
        tokens.WikilinkClose,
        tokens.ExternalLinkClose,
        tokens.HeadingEnd,
        tokens.CommentEnd,
        tokens.TagCloseClose,
        tokens.TagCloseSelfclose,
    }
)
_DROPPED_TAGS = _words(
    "categorytree ce chem code gallery graph hiero imagemap indicator inputbox langconvert mapframe "
    "maplink math noinclude phonos pre ref references score section source style syntaxhighlight table "
    "templatedata templatestyles timeline"
)
"""Not prose, or not the article's own."""
_LINE_TAGS = _words("blockquote br center dd div dl dt h1 h2 h3 h4 h5 h6 hr li ol p poem ul")
LINK_NAMESPACES = frozenset({"category", "file", "image", "media"})
"""Of every wiki, whatever its language."""
_INTERLANGUAGE = re.compile(r"(?:[a-z]{2,3}|simple|[a-z]{2,3}(?:-[a-z]+)+):\S")
_DISAMBIGUATION = _words(
    "disambig disamb disam dab geodis hndis mathdab numberdis roaddis schooldis begriffsklärung homonymie "
    "desambiguación desambiguação disambigua ujednoznacznienie неоднозначность förgrening 曖昧さ回避 消歧义 消歧義"
)
"""The large Wikipedias' names for the template that marks a page of meanings, beside any `... disambiguation`."""
_MAGIC_WORD = re.compile(r"__[^\W\d_]+__")
_STRAY_QUOTES = re.compile("'{2,}")
_STRAY_TAG = re.compile(r"</?[a-zA-Z][^<>\n]*>")
_HOLLOW = re.compile(r"[ \xa0]*(?:\([\s,;:\xa0]*\)|\[[\s,;:\xa0]*\])")
_OPENED_BY_COMMA = re.compile(r"\([\s\xa0]*[,;][\s\xa0]*")
_GAP_BEFORE_STOP = re.compile(r"[ \t\xa0]+(?=[,.)](?:[\s,.)]|$))", re.MULTILINE)
_GAP = re.compile(r"[ \t\xa0]{2,}|[\t\xa0]")
_BROKEN = ("{{", "}}", "[[", "]]", "{|", "|}", "<ref", "</ref")
"""A line with one of these is the rest of a construct that its author left open."""
_HAS_WORD = re.compile(r"\w")


class WikitextError(Exception):
    """The parser gave up on a page."""


def plain_text(wikitext: str, link_namespaces: Collection[str]) -> str | None:
    """Text of an article, a paragraph or list item a line; None if it is a disambiguation page.

    Links into one of `link_namespaces` (lower case: files, images, categories under all their names) leave nothing.
    """
    if "__DISAMBIG__" in wikitext:
        return None
    page = _Page(wikitext, link_namespaces)
    text, _ = page.text_until(())
    return None if page.is_disambiguation else _tidy(text)


class _Page:
    """One pass over the tokens of a page; every method leaves off behind the last token it used."""

    def __init__(self, wikitext: str, link_namespaces: Collection[str]) -> None:
        try:
            self._tokens: Iterator[Any] = iter(CTokenizer().tokenize(wikitext, 0, False))
        except ParserError as error:
            raise WikitextError(str(error)) from error
        self._link_namespaces = link_namespaces
        self.is_disambiguation = False
        self._handlers = {
            tokens.TemplateOpen: self._template,
            tokens.ArgumentOpen: self._skip,
            tokens.CommentStart: self._skip,
            tokens.HeadingStart: self._skip,
            tokens.WikilinkOpen: self._wikilink,
            tokens.ExternalLinkOpen: self._external_link,
            tokens.HTMLEntityStart: self._entity,
            tokens.TagOpenOpen: self._tag,
        }

    def text_until(self, ends: Collection[type]) -> tuple[str, Any]:
        """Visible text up to a token of one of the types `ends`, and that token; None at the end of the page."""
        parts = list[str]()
        for token in self._tokens:
            kind = type(token)
            if kind is tokens.Text:
                parts.append(token["text"])
            elif kind in ends:
                return "".join(parts), token
            elif handler := self._handlers.get(kind):
                parts.append(handler(token))
        return "".join(parts), None

    def _skip(self, _: Any) -> str:
        """Leave out the rest of a construct that is open, with all in it."""
        depth = 1
        for token in self._tokens:
            kind = type(token)
            if kind in _OPENING:
                depth += 1
            elif kind in _CLOSING:
                depth -= 1
                if not depth:
                    break
        return ""

    def _template(self, opening: Any) -> str:
        name = next(self._tokens)
        if type(name) is tokens.Text:
            normal = name["text"].strip().lower().replace("_", " ")
            if normal in _DISAMBIGUATION or normal.removesuffix(" cleanup").endswith("disambiguation"):
                self.is_disambiguation = True
        elif type(name) is tokens.TemplateClose:
            return ""
        elif type(name) in _OPENING:
            self._skip(name)
        return self._skip(opening)

    def _wikilink(self, _: Any) -> str:
        title, end = self.text_until((tokens.WikilinkSeparator, tokens.WikilinkClose))
        label = self.text_until((tokens.WikilinkClose,))[0] if type(end) is tokens.WikilinkSeparator else ""
        prefix, colon, _rest = title.partition(":")
        if colon and prefix.strip().lower() in self._link_namespaces:
            return ""
        if not label and _INTERLANGUAGE.match(title):
            return ""
        return label or title.lstrip(":")

    def _external_link(self, _: Any) -> str:
        """The label; an address alone is no text."""
        _url, end = self.text_until((tokens.ExternalLinkSeparator, tokens.ExternalLinkClose))
        return self.text_until((tokens.ExternalLinkClose,))[0] if type(end) is tokens.ExternalLinkSeparator else ""

    def _entity(self, _: Any) -> str:
        body = ""
        for token in self._tokens:
            kind = type(token)
            if kind is tokens.HTMLEntityEnd:
                break
            body += (
                "#" if kind is tokens.HTMLEntityNumeric else token["char" if kind is tokens.HTMLEntityHex else "text"]
            )
        return html.unescape(f"&{body};")

    def _tag(self, opening: Any) -> str:
        first = next(self._tokens)
        name = first["text"].strip().lower() if type(first) is tokens.Text else ""
        if type(first) in _OPENING:
            self._skip(first)
        if not name or name in _DROPPED_TAGS:
            return self._skip(opening)
        _attributes, end = self.text_until((tokens.TagCloseOpen, tokens.TagCloseSelfclose))
        line_end = "\n" if name in _LINE_TAGS and not opening.wiki_markup else ""
        if type(end) is tokens.TagCloseSelfclose:
            return line_end
        content, _ = self.text_until((tokens.TagOpenClose,))
        self._skip(opening)
        return f"{line_end}{content}{line_end}"


def _tidy(text: str) -> str:
    """Close the gaps that dropped constructs leave, and drop what no parser could make sense of."""
    text = _STRAY_TAG.sub(_keep_references, _MAGIC_WORD.sub("", text))
    text = _STRAY_QUOTES.sub("", text)
    text = _OPENED_BY_COMMA.sub("(", _HOLLOW.sub("", text))
    text = _GAP.sub(" ", _GAP_BEFORE_STOP.sub("", text))
    return "\n".join(line for line in map(str.strip, text.split("\n")) if _is_prose(line))


def _keep_references(tag: re.Match[str]) -> str:
    return tag[0] if "ref" in tag[0][:5].lower() else ""


def _is_prose(line: str) -> bool:
    if not line or line[0] in "|!" or not _HAS_WORD.search(line):
        return False
    return not any(mark in line for mark in _BROKEN)
