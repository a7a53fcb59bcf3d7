"""Make build/pages/html: documentation of Debian 12 as rows of HTML, one file a package.

    python experiments/pages/fetch.py [--debs FOLDER] [--out FOLDER]

FOLDER holds the .deb files; without it they are downloaded with apt-get. The same packages give the
same rows. `rntp data prep experiments/pages/prep.yaml` makes the corpus of them.
"""

import argparse
import gzip
import json
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Package:
    """A source of pages. root: a folder in the package. pattern: of the English pages in it.

    skipped: beginnings of the paths below root that hold listings, sources or release notes.
    """

    name: str
    root: str
    url: str
    pattern: str = "**/*.html"
    skipped: tuple[str, ...] = ()


LISTINGS = ("index", "genindex", "search", "toc", "print", "py-modindex", "copyright", "license")

PACKAGES = (
    Package(
        "python3.11-doc",
        "usr/share/doc/python3.11/html",
        "https://docs.python.org/3.11/",
        skipped=("whatsnew/changelog",),
    ),
    Package(
        "debian-handbook",
        "usr/share/doc/debian-handbook/html/en-US",
        "https://debian-handbook.info/browse/en-US/stable/",
    ),
    Package("sqlite3-doc", "usr/share/doc/sqlite3", "https://www.sqlite.org/", "*.html"),
    Package(
        "postgresql-doc-15",
        "usr/share/doc/postgresql-doc-15/html",
        "https://www.postgresql.org/docs/15/",
        skipped=("release", "bookindex"),
    ),
    *(
        Package(
            "rust-doc", f"usr/share/doc/rust-doc/html/{part}", f"https://doc.rust-lang.org/{part}/"
        )
        for part in ("book", "reference", "nomicon", "cargo", "rustc", "rustdoc", "edition-guide")
    ),
    Package(
        "apache2-doc",
        "usr/share/doc/apache2-doc/manual/en",
        "https://httpd.apache.org/docs/2.4/en/",
    ),
    Package("git-doc", "usr/share/doc/git-doc", "https://git-scm.com/docs/", skipped=("RelNotes",)),
    Package(
        "python-django-doc",
        "usr/share/doc/python-django-doc/html",
        "https://docs.djangoproject.com/en/3.2/",
        skipped=("_modules", "releases"),
    ),
    Package(
        "linux-doc-6.1",
        "usr/share/doc/linux-doc-6.1/html",
        "https://docs.kernel.org/6.1/",
        skipped=("translations",),
    ),
    Package(
        "debian-policy", "usr/share/doc/debian-policy", "https://www.debian.org/doc/debian-policy/"
    ),
    Package(
        "debian-reference-en",
        "usr/share/debian-reference",
        "https://www.debian.org/doc/manuals/debian-reference/",
    ),
    Package(
        "developers-reference",
        "usr/share/developers-reference",
        "https://www.debian.org/doc/manuals/developers-reference/",
    ),
    Package("maxima-doc", "usr/share/doc/maxima-doc/html", "https://maxima.sourceforge.io/docs/"),
    Package("octave-doc", "usr/share/doc/octave", "https://docs.octave.org/v7/"),
    Package("gimp-help-en", "usr/share/gimp/2.0/help/en", "https://docs.gimp.org/2.10/en/"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--debs", type=Path, help="folder with the .deb files")
    parser.add_argument("--out", type=Path, default=Path("build/pages/html"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        debs = options.debs or _download(Path(scratch))
        for name in sorted({package.name for package in PACKAGES}):
            (deb,) = debs.glob(f"{name}_*.deb")
            folder = Path(scratch) / name
            subprocess.run(["dpkg-deb", "-x", deb, folder], check=True)
            rows = [row for p in PACKAGES if p.name == name for row in pages(p, folder)]
            write(options.out / f"{name}.jsonl.gz", rows)
            print(f"{name}: {len(rows)} pages, {sum(len(row['html']) for row in rows):,} chars")


def _download(folder: Path) -> Path:
    names = sorted({package.name for package in PACKAGES})
    command = ["apt-get", "download", "-o", "APT::Sandbox::User=root", *names]
    try:
        subprocess.run(command, cwd=folder, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"apt-get could not download the packages ({error}); run this on Debian 12, or get "
            f"{' '.join(names)} from a mirror and pass their folder as --debs"
        ) from error
    return folder


def pages(package: Package, folder: Path) -> Iterator[dict[str, str]]:
    """Yield address and HTML of a package's pages, in the order of their paths."""
    root = folder / package.root
    for path in sorted(root.glob(package.pattern)):
        inner = path.relative_to(root).as_posix()
        listing = path.name.lower().startswith(LISTINGS)
        if not listing and not inner.startswith(package.skipped or ("\0",)) and path.is_file():
            html = path.read_bytes().decode("utf-8", "replace")
            yield {"url": package.url + inner, "html": html}


def write(path: Path, rows: list[dict[str, str]]) -> None:
    """Write rows as packed JSON Lines, whole or not at all."""
    part = path.with_suffix(".part")
    with part.open("wb") as file, gzip.GzipFile(fileobj=file, mode="wb", mtime=0) as packed:
        for row in rows:
            packed.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
    part.replace(path)


if __name__ == "__main__":
    main()
