"""What every page of rntp is made with: one HTML file that needs no network.

It runs one script, its own: the page's policy names the hash of it, and lets no other run.
"""

import base64
import hashlib
from pathlib import Path

import jinja2
from markupsafe import Markup

_FOLDER = Path(__file__).resolve().parent


def render_template(template: Path, *, kind: str, title: str, **values: object) -> str:
    """The HTML of a template that extends `base.html`. kind: of page, beside its title.

    Every value is escaped unless it is Markup; one that the template names and nobody gave is an
    error.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([template.parent, _FOLDER]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = Markup((_FOLDER / "style.css").read_text(encoding="utf-8"))
    script = (_FOLDER / "page.js").read_text(encoding="utf-8")
    return environment.get_template(template.name).render(
        kind=kind,
        title=title,
        style=style,
        script=Markup(script),
        script_hash=script_hash(script),
        **values,
    )


def script_hash(script: str) -> str:
    """Return the source expression of a policy that lets this script run, and no other."""
    digest = hashlib.sha256(script.encode("utf-8")).digest()
    return f"sha256-{base64.b64encode(digest).decode('ascii')}"
