"""Records of web archives to pages."""

import re
from collections.abc import Iterator
from functools import partial

from rntp_data_prep.charsets import Undecodable, content_type_label, decode
from rntp_data_prep.http_body import (
    Undecoded,
    looks_like_markup,
    parse_response,
    plain_body,
)
from rntp_data_prep.page import MAX_PAGE_BYTES, Page, Tally, Unit, top_level_domain
from rntp_data_prep.records import Record, records
from rntp_data_prep.unpack import OnDamage

_HTML_TYPES = ("text/html", "application/xhtml+xml")
# What browsers take for no type at all (https://mimesniff.spec.whatwg.org).
_NO_TYPES = ("", "unknown/unknown", "application/unknown", "*/*")
_MIME = re.compile(r"""[\s"']*([\w.+*-]+/[\w.+*-]+)""")
_PAGES = ("response", "resource", "conversion", "continuation", "damaged")


def record_units(
    pieces: Iterator[bytes | None],
    source: str,
    tally: Tally,
    on_damage: OnDamage,
    *,
    checked: bool,
) -> Iterator[Unit]:
    """The pages of an archive: responses, resources and texts, and what is damaged. Others, such
    as requests and metadata, are no pages. Parameters as of `records`."""
    for record in records(pieces, tally.notes, on_damage, checked=checked):
        if record.kind in _PAGES:
            yield partial(_page, record, source, tally)


def _page(record: Record, source: str, tally: Tally) -> Page:
    url = record.url
    if record.kind == "damaged":
        return Page(f"{source}@{record.at}", source, None, "damaged_record")
    if record.kind == "continuation":
        return Page(url, source, None, "continued_record")
    if record.block is None:
        return Page(url, source, None, "page_too_large")
    if record.fields.get("warc-truncated"):
        tally.notes["pages_cut_by_the_crawler"] += 1
    if record.kind == "response" or record.content_type.startswith("application/http"):
        return _response_page(record, record.block, source, tally)
    kind = _mime(record.content_type) or ("text/plain" if record.kind == "conversion" else "")
    return _typed_page(kind, record.content_type, record.block, url, source, tally)


def _response_page(record: Record, block: bytes, source: str, tally: Tally) -> Page:
    url = record.url
    response = parse_response(block)
    if response is None:
        # Some tools archive a response without its head.
        if _mime(record.content_type) in _HTML_TYPES or (
            not url.startswith("dns:") and looks_like_markup(block[:1024])
        ):
            return _decoded(block, record.content_type, url, source, True, tally)
        return Page(url, source, None, "not_http")
    if response.status != 200:
        return Page(url, source, None, "http_status")
    kinds = [value for value in response.all("content-type") if value]
    declared = kinds[0] if kinds else ""
    kind = _mime(declared)
    if kind not in (*_HTML_TYPES, *_NO_TYPES):
        return Page(url, source, None, "not_html")
    try:
        body = plain_body(response, MAX_PAGE_BYTES, tally.notes)
    except Undecoded:
        return Page(url, source, None, "undecodable")
    if kind in _NO_TYPES and not looks_like_markup(body[:1024].lstrip()[:64]):
        return Page(url, source, None, "not_html")
    return _decoded(body, declared, url, source, True, tally)


def _typed_page(
    kind: str, declared: str, block: bytes, url: str, source: str, tally: Tally
) -> Page:
    if kind in _HTML_TYPES:
        return _decoded(block, declared, url, source, True, tally)
    if kind == "text/plain":
        # WET files are UTF-8, whatever they do not say.
        return _decoded(block, declared or "charset=utf-8", url, source, False, tally)
    return Page(url, source, None, "not_html")


def _decoded(
    body: bytes, content_type: str, url: str, source: str, is_html: bool, tally: Tally
) -> Page:
    return decoded_page(body, content_type_label(content_type), url, source, is_html, tally)


def decoded_page(
    body: bytes, declared: str, url: str, source: str, is_html: bool, tally: Tally
) -> Page:
    """The page of a body. declared: the charset that came with it, or nothing."""
    if len(body) > MAX_PAGE_BYTES:
        return Page(url, source, None, "page_too_large")
    try:
        found = decode(body, declared, markup=is_html, tld=top_level_domain(url))
    except Undecodable:
        return Page(url, source, None, "undecodable")
    tally.replaced(found.replaced)
    if is_html:
        return Page(url, source, found.text)
    return Page(url, source, None, text=found.text)


def _mime(content_type: str) -> str:
    found = _MIME.match(content_type)
    return found[1].lower() if found else ""
