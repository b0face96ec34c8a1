"""Wikitext to text: what a reader of the article sees stays, everything else goes."""

import pytest

from preprocessing.readers.wikitext import LINK_NAMESPACES, plain_text

CASES = [
    ("'''Bold''' and ''italic''.", "Bold and italic."),
    (
        "A [[link]], a [[target|label]], a [[:Category:X|shown]] and [[plural]]s.",
        "A link, a label, a shown and plurals.",
    ),
    ("[[File:A.jpg|thumb|A [[caption]] {{with|a}} link]]Text.[[Category:Things]] [[Image:b.png]]", "Text."),
    ("Text.\n[[de:Wort]]\n[[simple:Word]]", "Text."),
    ("In {{convert|5|km|mi}} reach{{sfn|Smith|2001|p={{page|3}}}}.", "In reach."),
    ("Before ({{lang|el|x}}) and ({{IPA|y}}; born 1950), after.", "Before and (born 1950), after."),
    ('Said.<ref name="a">A [[source]].</ref> And<ref name="a" /> so.', "Said. And so."),
    ("== Heading ==\nText.\n=== [[Other]] ===", "Text."),
    ("Up.\n{| class=x\n|-\n! a\n| b {{c}}\n{|\n| inner\n|}\n|}\nDown.", "Up.\nDown."),
    ("* One [[item]].\n# Two.\n: Three.", "One item.\nTwo.\nThree."),
    ("See [http://a.b the site] or http://c.d [http://e.f].", "See the site or."),
    ("A&nbsp;b &amp; c &#233; &#xe9; &mdash; d", "A b & c é é — d"),
    ("In<!-- never {{seen}} --> fact.__NOTOC__", "In fact."),
    (
        "One<br/>two <span style='x'>three</span> <math>x^2</math><gallery>\nA.jpg|b\n</gallery>end",
        "One\ntwo three end",
    ),
    ("H<sub>2</sub>O by {{{argument|default}}}day", "H2O by day"),
    ("<div class={{x}}>Inside.</div>After.", "Inside.\nAfter."),
    ("{{Infobox\n| a = [[b]]\n| c = {{d|e}}\n}}\nText.", "Text."),
    ("#REDIRECT is a word.\n", "REDIRECT is a word."),
    ("", ""),
    ("== Only ==\n{{stub}}\n[[Category:X]]", ""),
]


@pytest.mark.parametrize(("wikitext", "text"), CASES)
def test_visible_text_stays(wikitext, text):
    assert plain_text(wikitext, LINK_NAMESPACES) == text


@pytest.mark.parametrize("broken", ["a {{open", "a [[open", "{| open\n| cell", "a <ref>open", "|} alone", "b}} {{{{c"])
def test_what_is_left_open_costs_its_lines_only(broken):
    text = plain_text(f"Good.\n{broken}\n", LINK_NAMESPACES)
    assert text == "Good."


DISAMBIGUATION = ["{{disambiguation}}", "{{Disambig|geo}}", "{{Human name disambiguation}}", "{{dab}}", "__DISAMBIG__"]


@pytest.mark.parametrize("mark", [*DISAMBIGUATION, "{{Disambiguation cleanup|date=May}}", "{{Begriffsklärung}}"])
def test_disambiguation_pages_are_no_articles(mark):
    assert plain_text(f"'''X''' may be:\n* [[A]]\n{mark}", LINK_NAMESPACES) is None


@pytest.mark.parametrize("mark", ["{{disambiguation needed}}", "{{about|x|y|X (disambiguation)}}", "{{stub}}"])
def test_templates_that_only_speak_of_disambiguation_are_harmless(mark):
    assert plain_text(f"Text.{mark}", LINK_NAMESPACES) == "Text."


def test_link_namespaces_have_their_wikis_names():
    assert plain_text("[[Datei:A.jpg|mini]]Text.", LINK_NAMESPACES | {"datei"}) == "Text."
