import pytest
from rntp_data_prep.web.urls import MAX_URL_CHARS, Allowed, canonical, folder_of, region

from rntp.errors import ConfigError

PAGE = "https://Example.org/docs/a/page.html"


def test_an_address_has_one_spelling() -> None:
    assert canonical("HTTPS://Example.org:443/docs#top") == "https://example.org/docs"
    assert canonical(" ../b c.html ", PAGE) == "https://example.org/docs/b%20c.html"
    assert canonical("//Bücher.example./", PAGE) == "https://xn--bcher-kva.example/"
    assert canonical("?q=1&r=2", PAGE) == "https://example.org/docs/a/page.html?q=1&r=2"
    assert canonical("//other.org:8080/x", PAGE) == "https://other.org:8080/x"
    assert canonical("/docs/%7Euser/%41", PAGE) == "https://example.org/docs/~user/A"
    assert canonical(canonical("/a%20b", PAGE) or "") == "https://example.org/a%20b"


def test_no_path_leads_out_of_its_folder_however_it_is_written() -> None:
    allowed = Allowed(["https://example.org/docs/"])
    for link in ("../../../etc", "/docs/../etc", "/docs/%2e%2e/etc", "/%2E%2E/docs/.%2e/etc"):
        found = canonical(link, PAGE)
        assert found == "https://example.org/etc", link
        assert found not in allowed


@pytest.mark.parametrize(
    "link",
    [
        "file:///etc/passwd",
        "javascript:alert(1)",
        "data:text/html,x",
        "mailto:a@example.org",
        "ftp://example.org/",
        "https://example.org@evil.org/",
        "https://example.org\\@evil.org/",
        "https://exa\nmple.org/",
        "https://exa mple.org/",
        "https://example.org:port/",
        "https://[::1/",
        "/" + "a" * MAX_URL_CHARS,
        "",
    ],
)
def test_what_is_never_asked_for(link: str) -> None:
    assert canonical(link, PAGE) is None


def test_only_what_is_listed_is_allowed() -> None:
    allowed = Allowed(["https://example.org/docs/", "http://127.0.0.1:8000/one.html"])
    inside = [
        "https://example.org/docs/",
        "https://example.org/docs/a",
        "http://127.0.0.1:8000/one.html",
    ]
    outside = [
        "http://example.org/docs/",  # another scheme
        "https://example.org/docs2/",
        "https://example.org.evil.org/docs/",
        "https://evil.org/docs/",
        "https://example.org:8443/docs/",
        "http://127.0.0.1:8000/one.htmlx",
        "http://127.0.0.1:9000/one.html",
    ]
    assert [url in allowed for url in inside] == [True] * 3
    assert [url in allowed for url in outside] == [False] * 7
    with pytest.raises(ConfigError, match="write it in full"):
        Allowed(["example.org/docs"])


def test_a_region_is_host_and_folders_and_numbers_do_not_count() -> None:
    at = "https://example.org/calendar-2026/11/29.html"
    assert region(at, 1) == region(at.replace("2026", "2031"), 1) == "example.org/calendar-0"
    assert region(at, 2) == "example.org/calendar-0/0"
    assert region(at, 0) == region("https://example.org/", 1) == "example.org"
    assert region("https://example.org/desks/", 1) == "example.org/desks"
    assert folder_of("https://example.org/a/b.html") == "https://example.org/a/"
