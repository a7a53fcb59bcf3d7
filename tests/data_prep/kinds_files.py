"""Cases of charsets, JSON lines, tars, slow pages and Parquet (see `kinds`)."""

import gzip
import io
import json
import struct
from collections.abc import Iterator
from typing import Any

import lz4.frame
import zstandard
from kinds import (
    CHINESE,
    GERMAN,
    JAPANESE,
    KOREAN,
    RUSSIAN,
    TAIWANESE,
    Case,
    bare,
    good,
    html,
    http,
    lines,
    numbered,
    page,
    prose,
    record,
    row,
    tar,
    zstd,
)


def files() -> Iterator[Case]:
    """Charsets, JSON lines, tars, and pages that could take long."""
    for make in (_charsets, _lines, _packed_lines, _tars, _pages):
        yield from make()


def _charset(
    tag: str,
    pattern: str,
    codec: str,
    label: str = "",
    meta: str = "",
    mark: bytes = b"",
    **more: Any,
) -> Case:
    """A page in a codec, of which label (of the response) and meta say something."""
    text = prose(tag, pattern)
    body = mark + html(text, meta).encode(codec)
    kind = f"Content-Type: text/html; charset={label}" if label else "Content-Type: text/html"
    return Case(f"{tag} x.warc", record(http(body, kind)), [text], **more)


def _charsets() -> Iterator[Case]:
    meta = '<meta charset="{}">'.format
    yield _charset("cs1", RUSSIAN, "cp1251", "none", meta("windows-1251"))
    yield _charset("cs2", RUSSIAN, "cp1251", '"windows-1251"')
    yield _charset("cs3", RUSSIAN, "cp1251", "windows-1251; charset=windows-1251")
    yield _charset("cs4", RUSSIAN, "cp1251", "utf-8")  # a label that lies
    yield _charset("cs5", RUSSIAN, "cp1251", "iso-8859-1")
    yield _charset("cs6", RUSSIAN, "koi8-r")  # none at all
    yield _charset("cs7", RUSSIAN, "koi8-r", "windows-1251x", meta("koi8-r"))
    yield _charset(
        "cs8",
        RUSSIAN,
        "cp1251",
        "",
        '<META http-equiv=Content-Type content="text/html;charset=cp1251">',
    )
    yield _charset("cs9", RUSSIAN, "utf-16-le", "", "", b"\xff\xfe")
    yield _charset("cs10", RUSSIAN, "utf-16-be", "utf-16be")
    yield _charset("cs11", GERMAN, "utf-8", "iso-8859-1", "", b"\xef\xbb\xbf")
    yield _charset("cs12", GERMAN, "utf-8", "iso-8859-1", meta("utf-8"))
    yield _charset("cs13", GERMAN, "utf-8", "", meta("utf-16"))
    yield _charset("cs14", GERMAN, "cp1252", "iso-8859-1")
    yield _charset("cs15", GERMAN, "cp1252")
    yield _charset("cs16", GERMAN, "utf-32", "utf-8")
    yield _charset("cs17", KOREAN, "cp949")
    yield _charset("cs18", KOREAN, "cp949", "EUC-KR")
    yield _charset("cs19", KOREAN, "iso2022_kr", "iso-2022-kr")
    yield _charset("cs20", CHINESE, "gb18030", "gb2312")
    yield _charset("cs21", CHINESE, "gbk")
    yield _charset("cs22", CHINESE, "utf-8", "gbk")
    yield _charset("cs23", JAPANESE, "cp932", "Shift_JIS")
    yield _charset("cs24", JAPANESE.translate({ord(c): None for c in "①②③㈱髙﨑"}), "euc_jp")
    yield _charset("cs25", JAPANESE.translate({ord(c): None for c in "①②③㈱髙﨑"}), "iso2022_jp")
    yield _charset("cs26", TAIWANESE, "big5")
    yield _charset(
        "cs27", RUSSIAN, "cp1251", "", "<!-- <meta charset=utf-8> -->" + meta("windows-1251")
    )
    # NEC's characters, which Python's EUC-JP does not have.
    text = prose("cs28", "船は七時に港を出ます{tag}。")
    body = html(text + "①㈱").encode("euc_jp", "ignore").replace(b"</p>", b"\xad\xa1\xad\xea</p>")
    yield Case(
        "cs28 x.warc", record(http(body, "Content-Type: text/html; charset=euc-jp")), [text + "①㈱"]
    )
    xml = '<?xml version="1.0" encoding="windows-1251"?>' + html(prose("cs29", RUSSIAN))
    yield Case("cs29 x.html", xml.encode("cp1251"), [prose("cs29", RUSSIAN)])
    replaced = {"pages_with_replaced_characters": 1, "replaced_characters": 1}
    for n, (pattern, codec, label) in enumerate(
        (
            (GERMAN, "utf-8", "utf-8"),
            (GERMAN, "utf-8", ""),
            (RUSSIAN, "utf-8", "iso-8859-1"),
            (CHINESE, "gb18030", "gbk"),
        ),
        1,
    ):
        case = _charset(f"byte{n}", pattern, codec, label, notes=replaced)
        case.data = record(case.data[case.data.index(b"HTTP/") : -4].replace(b"</p>", b"\xff</p>"))
        yield case
    noise = bytes(range(256)) * 20
    half = html(prose("noise2", RUSSIAN)).encode("utf-8").replace(b"\xd0\xb0", b"\xd0 ")
    bad = record(http(noise)) + record(http(half))
    yield numbered("noise x.warc", good("noise1") + bad, 1, reasons={"undecodable": 2})
    text = prose("wetcs", GERMAN)
    data = record(text.encode() + b"\xe9", "conversion", mime="text/plain")
    yield Case("wetcs x.wet", data, [text], notes=replaced)
    for n, (codec, mark) in enumerate(
        (("cp1252", b""), ("utf-16-le", b"\xff\xfe"), ("utf-8", b"\xef\xbb\xbf")), 1
    ):
        text = prose(f"text{n}", GERMAN)
        yield Case(f"text{n} x.TXT", mark + text.encode(codec), [text])
    yield Case("text4 x.txt.gz", gzip.compress(prose("text41").encode()), [prose("text41")])
    nul = page("nul1").replace(b"harbour", b"har\0bour")
    yield numbered("nul x.html", nul, 1)


def rows(tag: str) -> list[dict[str, str]]:
    return [row(f"{tag}{n}") for n in range(1, 4)]


def plain(tag: str) -> bytes:
    return lines(*rows(tag))


def _lines() -> Iterator[Case]:
    yield numbered("bom x.jsonl", b"\xef\xbb\xbf" + plain("bom"), 3)
    beside = [
        {**r, "score": s}
        for r, s in zip(rows("nan"), (float("nan"), float("inf"), 1e300), strict=True)
    ]
    yield numbered("nan x.jsonl", lines(*beside), 3)
    yield numbered("cr x.jsonl", plain("cr").replace(b"\n", b"\r"), 3)
    yield numbered("crlf x.json", plain("crlf").replace(b"\n", b"\r\n")[:-2], 3)
    yield numbered("array x.json", json.dumps(rows("array")).encode(), 3)
    yield numbered(
        "pretty x.jsonl", "\n".join(json.dumps(r, indent=1) for r in rows("pretty")).encode(), 3
    )
    yield numbered("prettier x.json", json.dumps(rows("prettier"), indent=2).encode(), 3)
    yield numbered("utf16 x.jsonl", plain("utf16").decode().encode("utf-16"), 3)
    yield numbered("utf16be x.jsonl", plain("utf16be").decode().encode("utf-16-be"), 3)
    digits = [json.dumps(r).encode()[:-1] + b', "n": ' + b"9" * 5000 + b"}" for r in rows("digits")]
    yield numbered("digits x.jsonl", lines(*digits), 3)
    deep = b'{"text": "x", "d": ' + b"[" * 20_000 + b"]" * 20_000 + b"}"
    yield numbered(
        "deep x.jsonl", lines(row("deep1"), deep, row("deep2")), 2, reasons={"malformed_line": 1}
    )
    replaced = {"pages_with_replaced_characters": 1, "replaced_characters": 1}
    lone = json.dumps({"text": prose("lone1") + "\ud83d"}).encode()
    side = json.dumps({"text": prose("lone2"), "author": "\ud800", "title": "\ud800"}).encode()
    yield numbered("lone x.jsonl", lines(lone, side), 2, notes=replaced)
    many = json.dumps({"text": "\ud83d" * 300}).encode()
    yield numbered("lones x.jsonl", lines(row("lones1"), many), 1, reasons={"not_unicode": 1})
    broken = lines(row("broken1"))[:-1].replace(b"harbour", b"har\xffbour", 1) + b"\n"
    yield Case("broken x.jsonl", broken, [prose("broken1")], notes=replaced)
    mixed = [
        {"text": [prose(1)]},
        {"text": None, "content": prose("mixed1")},
        {"html": "", "text": prose("mixed2")},
        {"text": " ", "raw_content": prose("mixed3")},
        {"text": 5},
        [prose(2)],
        prose(3),
        None,
        {"html": html(prose("mixed4")), "text": "other " * 200},
        {"text": prose("mixed5"), "url": 5, "title": ["a"]},
    ]
    yield numbered(
        "mixed x.jsonl", lines(*mixed), 5, reasons={"no_text_field": 2, "malformed_line": 3}
    )
    named = [{"id": 1, "page": {"body": prose(f"named{n}")}} for n in (1, 2)]
    says = (
        r"holds no usable page \(no_text_field 2\); its rows have the fields id, page\.body: "
        "name .*`text_field`"
    )
    yield Case("named1 x.jsonl", lines(*named), refused=says)
    yield numbered("named x.jsonl", lines(*named), 2, options={"text_field": "page.body"})
    marked = [{"text": "not this " * 50, "page": {"doc": html(prose("marked1"))}}]
    yield numbered("marked x.jsonl", lines(*marked), 1, options={"html_field": "page.doc"})
    yield Case("empty1 x.jsonl", b"", refused=r"holds no usable page \(it is empty\)")
    yield Case(
        "empty2 x.jsonl.gz", gzip.compress(b"\n\n"), refused=r"holds no usable page \(it is empty\)"
    )


def _packed_lines() -> Iterator[Case]:
    whole = plain("member")
    packed = (
        gzip.compress(whole[:700]) + gzip.compress(b"") + gzip.compress(whole[700:]) + bytes(99)
    )
    yield numbered("member x.json.gz", packed, 3)
    yield numbered("misplain x.jsonl.gz", plain("misplain"), 3)
    yield numbered("mispacked x.jsonl", gzip.compress(plain("mispacked")), 3)
    skip = struct.pack("<II", 0x184D2A50, 4) + b"skip"
    whole = plain("skip")
    yield numbered(
        "skip x.jsonl.zst", skip + zstd(whole[:900]) + skip + zstd(whole[900:]) + skip, 3
    )
    yield numbered("nosize x.jsonl.zst", zstd(plain("nosize"), write_content_size=False), 3)
    wide = zstandard.ZstdCompressionParameters.from_level(1, window_log=28)
    stream = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    yield numbered("window x.jsonl.zst", stream.compress(plain("window")) + stream.flush(), 3)
    yield numbered("lines x.jsonl.lz4", lz4.frame.compress(plain("lines")), 3)
    cut = gzip.compress(plain("linecut"))
    yield Case(
        "linecut1 x.jsonl.gz",
        cut[:-12],
        refused=r"at byte 0, after 2 pages: the last gzip member has no end",
    )
    yield numbered(
        "linecut x.jsonl.gz", cut[:-12], 2, reasons={"damaged": 1}, options={"damaged": "use"}
    )
    wrong = cut[:-8] + b"\1\2\3\4" + cut[-4:]
    yield Case("linecut2 x.jsonl.gz", wrong, refused="gzip: .*incorrect data check")
    torn = (
        gzip.compress(plain("torn"))
        + gzip.compress(b"x" * 99)[:-9]
        + b"123456789"
        + gzip.compress(b'yz"}\n' + plain("torn9"))
    )
    texts = [prose(f"torn{n}") for n in (1, 2, 3)] + [prose(f"torn9{n}") for n in (1, 2, 3)]
    yield Case("torn x.jsonl.gz", torn, texts, reasons={"damaged": 1}, options={"damaged": "use"})
    yield Case("tail x.jsonl.zst", zstd(plain("tail")) + b"xyz", refused="what follows is no zstd")
    lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    yield Case("lfs x.jsonl", lfs, refused="a pointer of Git LFS")


def _tars() -> Iterator[Case]:
    def members(tag: str) -> list[tuple[str, bytes]]:
        return [(f"{n:04d}.txt", prose(f"{tag}{n}").encode()) for n in (1, 2, 3)]

    yield numbered(
        "tar1 x.tar", tar(*((f"site.example.{name}", data) for name, data in members("tar1"))), 3
    )
    yield numbered(
        "tar2 x.tar", tar(*((f"./d{name}/1.txt", data) for name, data in members("tar2"))), 3
    )
    upper = [
        ("1.TXT", prose("tar31").encode()),
        ("2.HTML", page("tar32")),
        ("3.htm", page("tar33")),
    ]
    yield numbered("tar3 x.tar", tar(*upper, ("4.text", prose("tar34").encode())), 4)
    for n, blocks in enumerate((0, 1), 4):
        data = bare(tar(*members(f"tar{n}")), blocks)
        yield numbered(f"tar{n} x.tar", data, 3, notes={"tars_without_end": 1})
    joined = tar(*members("tar6")) + tar(("9.txt", prose("tar64").encode()))
    yield numbered("tar6 x.tar", joined, 4)
    yield numbered("tar7 x.tar", tar(*members("tar7"), mode="w:gz"), 3)
    yield numbered("tar8 x.tgz", tar(*members("tar8"), mode="w:gz"), 3)
    yield numbered("tar9 x.tar.zst", zstd(tar(*members("tar9"))), 3)
    packed = [
        ("1.txt.gz", gzip.compress(prose("tara1").encode())),
        ("2.json.zst", zstd(json.dumps(row("tara2")).encode())),
    ]
    yield numbered("tara x.tar", tar(*packed), 2)
    apple = ("._0001.txt", b"\0\5\x16\7\0\2\0\0Mac OS X")
    yield numbered(
        "tarb x.tar", tar(apple, *members("tarb")), 3, notes={"tar_members_passed_over": 1}
    )
    facts = {"url": "http://harbour.example/1", "score": float("nan"), "title": "A"}
    beside = [("1.json", json.dumps(facts).encode()), ("1.txt", prose("tarc1").encode())]
    beside += [("2.json", b"\xef\xbb\xbf" + json.dumps(row("tarc2")).encode()), ("3.json", b"{")]
    yield numbered("tarc x.tar", tar(*beside), 2, reasons={"malformed_member": 1})
    texts = [prose("tard1", GERMAN), prose("tard2", RUSSIAN), prose("tard3", GERMAN)]
    coded = [("1.html", html(texts[0], '<meta charset="iso-8859-1">').encode("cp1252"))]
    coded += [("2.txt", texts[1].encode("cp1251")), ("3.txt", texts[2].encode() + b"\xe9")]
    replaced = {"pages_with_replaced_characters": 1, "replaced_characters": 1}
    yield Case("tard x.tar", tar(*coded), texts, notes=replaced)
    whole = tar(*members("tare"))
    yield Case(
        "tare1 x.tar", whole[:4000], refused=r"at byte 3072, after 2 pages: the member 0003.txt has"
    )
    yield numbered(
        "tare x.tar", whole[:4000], 2, reasons={"damaged": 1}, options={"damaged": "use"}
    )
    odd = tar(("\udcff\udcfe.txt", prose("tarh1").encode()), ("b.txt", prose("tarh2").encode()))
    yield numbered("tarh x.tar", odd, 2)
    yield Case("tarf x.tar", b"\0" * 1024, refused="holds no usable page")


def _pages() -> Iterator[Case]:
    run = prose("slow1") + "\na" + " " * 200_000 + "b"
    yield Case("slow1 x.jsonl.gz", gzip.compress(lines({"text": run})), [run])
    marks = prose("slow2") + " a" + "\u0300\u0316" * 60_000
    # The first 30 of a run, in canonical order, the first of the upper ones joined to its letter.
    kept = prose("slow2") + " \u00e0" + "\u0316" * 15 + "\u0300" * 14
    yield Case("slow2 x.jsonl.gz", gzip.compress(lines({"text": marks})), [kept])
    pre = html(prose("slow3") + "</p><pre>a" + " " * 40_000 + "b</pre><p>")
    yield Case("slow3 x.html", pre.encode(), [f"{prose('slow3')}\n\na{' ' * 40_000}b"])
    options = html(
        prose("slow4") + "</p><select>" + "<option>Town</option>" * 60_000 + "</select><p>"
    )
    yield Case("slow4 x.html", options.encode(), [prose("slow4")])
    attributes = html(f"<b {' '.join(f'a{n}=1' for n in range(24_000))}>{prose('slow5')}</b>")
    yield Case("slow5 x.html", attributes.encode(), [prose("slow5")])
    nested = html("<div>" * 9000 + prose("x"))
    rows = lines({"html": nested}, {"html": html(prose("slow6"))})
    yield Case("slow6 x.jsonl", rows, [prose("slow6")], reasons={"too_deep": 1})


def odd_utf8(values: list[bytes]) -> Any:
    """A column of strings, whatever their bytes."""
    import pyarrow as pa

    ends = [0]
    for value in values:
        ends.append(ends[-1] + len(value))
    places = pa.py_buffer(struct.pack(f"<{len(ends)}i", *ends))
    buffers = [None, places, pa.py_buffer(b"".join(values))]
    return pa.Array.from_buffers(pa.utf8(), len(values), buffers)


def tables() -> Iterator[Case]:
    """Those that need pyarrow."""
    import pyarrow as pa
    from pyarrow import parquet

    def table(columns: Any, **settings: Any) -> bytes:
        file = io.BytesIO()
        parquet.write_table(
            pa.table(columns) if isinstance(columns, dict) else columns, file, **settings
        )
        return file.getvalue()

    def texts(tag: str, count: int = 3) -> list[str]:
        return [prose(f"{tag}{n}") for n in range(1, count + 1)]

    beside = {
        "date1": pa.array([0, 2**60, 1], pa.timestamp("ms")),
        "date2": pa.array([0, 2**31 - 1, 1], pa.date32()),
        "date3": pa.array([0, 1, 2], pa.timestamp("us", tz="tzutc()")),
        "date4": pa.array([1, 2, 3], pa.timestamp("ns")),
        "side1": odd_utf8([b"a\xe9b", b"", b"\xff"]),
        "side2": pa.array([[("a", 1), ("a", 2)]] * 3, pa.map_(pa.string(), pa.int64())),
        "side3": pa.array([float("nan"), None, 1.0]),
    }
    for tag, column in beside.items():
        yield numbered(f"{tag} x.parquet", table({"text": texts(tag), "other": column}), 3)
    kinds = (pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view())
    for n, kind in enumerate(kinds, 1):
        values = (
            [text.encode() for text in texts(f"kind{n}")]
            if "binary" in str(kind)
            else texts(f"kind{n}")
        )
        yield numbered(f"kind{n} x.parquet", table({"text": pa.array(values, kind)}), 3)
    coded = pa.array(texts("coded")).dictionary_encode()
    yield numbered(
        "coded x.parquet",
        table({"text": coded, "title": pa.array(["a", "b", "c"], pa.large_string())}),
        3,
    )
    pages = [
        html(prose(f"pages{n}", RUSSIAN), "<meta charset=cp1251>").encode("cp1251") for n in (1, 2)
    ]
    yield Case(
        "pages x.parquet", table({"html": pages}), [prose(f"pages{n}", RUSSIAN) for n in (1, 2)]
    )
    replaced = {"pages_with_replaced_characters": 1, "replaced_characters": 1}
    german = prose("odd1", GERMAN)
    bad = odd_utf8([german.encode() + b"\xe9", prose("odd2").encode()])
    yield Case("odd x.parquet", table({"text": bad}), [german, prose("odd2")], notes=replaced)
    yield numbered("fall x.parquet", table({"html": ["", None, " "], "text": texts("fall")}), 3)
    nulls = {"text": pa.array([prose("null1"), None, prose("null2")])}
    yield numbered("null x.parquet", table(nulls), 2, reasons={"no_text_field": 1})
    twice = pa.table([pa.array(texts("twice")), pa.array(["x"] * 3)], names=["text", "text"])
    yield numbered("twice x.parquet", table(twice), 3)
    inner = {"page": [{"body": text, "at": 1} for text in texts("inner")], "n": [1, 2, 3]}
    says = (
        r"no_text_field 3\); its rows have the fields page\.body, page\.at, n: name the one .*"
        "`text_field`"
    )
    yield Case("inner1 x.parquet", table(inner), refused=says)
    yield numbered("inner x.parquet", table(inner), 3, options={"text_field": "page.body"})
    listed = table({"text": [[text] for text in texts("listed")]})
    yield Case("listed x.parquet", listed, refused="its rows have the fields text: name")
    yield Case(
        "rowless x.parquet", table({"text": pa.array([], pa.string())}), refused="it is empty"
    )
    whole = table({"text": texts("misnamed")})
    yield numbered("misnamed x.jsonl", whole, 3)
    yield numbered("repacked x.parquet.zst", zstd(table({"text": texts("repacked")})), 3)
    yield Case("cuts x.parquet", whole[:-100], refused="after 0 pages: cannot be read as Parquet")
    yield Case("none x.parquet", b"", refused="after 0 pages: cannot be read as Parquet")
    settings = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    checked = table({"text": texts("checked")}, write_page_checksum=True, **settings)
    changed = checked.replace(b"baker", b"BAKED", 1)
    yield Case("checked x.parquet", changed, refused="cannot be read as Parquet: .*CRC")
