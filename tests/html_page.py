"""A page as a browser reads it: for the tests of everything that writes HTML."""

import base64
import hashlib
from html.parser import HTMLParser


class Page(HTMLParser):
    """What a browser would make of the page."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.style = ""
        self.scripts: list[tuple[str, str]] = []
        """(type, content) of each; what the page runs has no type."""
        self._in_style = False
        self._in_script = False
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self._in_style = tag == "style"
        self._in_script = tag == "script"
        if self._in_script:
            self.scripts.append((dict(attrs).get("type") or "", ""))

    def handle_endtag(self, tag: str) -> None:
        self._in_style = self._in_script = False

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.style += data
        elif self._in_script:
            kind, content = self.scripts[-1]
            self.scripts[-1] = (kind, content + data)
        else:
            self.text += data

    def values(self, attribute: str) -> list[str]:
        return [value for _, name, value in self.attributes if name == attribute]

    def only_its_own_script_runs(self) -> bool:
        """Whether the page runs one script at most, inline, which its policy names by its hash."""
        policies = [v for _, name, v in self.attributes if name == "content" and "-src" in v]
        run = [content for kind, content in self.scripts if kind != "application/json"]
        if len(policies) != 1 or len(run) != 1:
            return False
        digest = base64.b64encode(hashlib.sha256(run[0].encode()).digest()).decode()
        return policies[0] == (
            "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
            f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
        )
