"""Bytes to text: labels, precedence, damage."""

import pytest
from rntp_data_prep.charsets import Undecodable, codec, content_type_label, decode, own_label

GREEK = "Το πλοίο φεύγει από το λιμάνι στις επτά και επιστρέφει με την παλίρροια. " * 6


@pytest.mark.parametrize(
    ("label", "name"),
    [
        ("gb2312", "gb18030"),
        ("GBK", "gb18030"),
        ("x-sjis", "cp932"),
        ("ks_c_5601-1987", "cp949"),
        ("latin1", "cp1252"),
        ("ascii", "cp1252"),
        (" 'UTF8' ", "utf-8"),
        ("unicode", "utf-16-le"),
        ("x-user-defined", "cp1252"),
        ("none", None),
        ("windows-1251x", None),
        ("", None),
    ],
)
def test_labels_mean_what_browsers_take_them_for(label: str, name: str | None) -> None:
    assert codec(label) == name


def test_a_page_names_its_charset_where_browsers_look_for_it() -> None:
    for head, label in (
        (b"<meta charset=koi8-r>", "koi8-r"),
        (b"<META  Charset = 'koi8-r' />", "koi8-r"),
        (b'<meta content="text/html; charset=koi8-r" http-equiv="Content-Type">', "koi8-r"),
        (b'<meta http-equiv=refresh content="0; charset=koi8-r">', ""),
        (b"<!-- <meta charset=big5> --><meta charset=koi8-r>", "koi8-r"),
        (b"<!-- <meta charset=big5>", ""),
        (b"<metaphor charset=big5>", ""),
        (b'  <?xml version="1.0" encoding="koi8-r"?>', "koi8-r"),
        (b"<meta name=a content='<meta charset=big5>'>", ""),
    ):
        assert own_label(b"<html>" * (not head.lstrip().startswith(b"<?")) + head) == label
    assert content_type_label('text/html; Charset="koi8-r"') == "koi8-r"
    assert content_type_label("text/html") == ""


def test_a_label_is_believed_as_far_as_it_fits() -> None:
    for name in ("iso-8859-7", "windows-1253"):
        found = decode(GREEK.encode(name), name, markup=True)
        assert (found.text, found.replaced) == (GREEK, 0)
    utf8 = GREEK.encode()
    for wrong in ("iso-8859-1", "iso-8859-7", "gbk", "euc-kr", "utf-16le", "shift_jis"):
        assert decode(utf8, wrong, markup=True).text == GREEK, wrong
    # Latin text with a few letters beyond ASCII is what its label says, and not what it could be.
    czech = "Příliš žluťoučký kůň úpěl ďábelské ódy nad řekou. " * 8
    for name in ("iso-8859-2", "windows-1250"):
        assert decode(czech.encode(name), name, markup=True).text == czech
    assert decode("déjà vu".encode("cp1252"), "windows-1252", markup=False).text == "déjà vu"


def test_wrong_bytes_are_replaced_and_counted_and_too_many_refused() -> None:
    data = bytearray(GREEK.encode())
    for place in (40, 161, 300):
        data[place] = 0xFF
    found = decode(bytes(data), "utf-8", markup=False)
    assert 3 <= found.replaced <= 6
    assert found.text.count("\ufffd") == found.replaced
    assert decode("\ufffd said".encode() + b" " * 60, markup=False).replaced == 0
    spoiled = "".join(c if n % 9 else "\ufffd" for n, c in enumerate(GREEK))
    for body in (spoiled.encode(), bytes(range(256)) * 9, b"\xff", GREEK.encode()[1::2]):
        with pytest.raises(Undecodable):
            decode(body, "utf-8", markup=False)


def test_damage_does_not_turn_a_charset_into_another() -> None:
    texts = {
        "euc_jp": "船は七時に港を出て、潮が許せば戻ります。冬は一時間長くかかります。\n" * 20,
        "gb18030": "渡轮七点离开港口，潮水允许时返回。冬天要多花一个小时。\n" * 20,
        "cp949": "배는 일곱 시에 항구를 떠나고 물때가 허락하면 돌아옵니다.\n" * 20,
        "big5": "渡輪七點離開港口，潮水允許時返回。冬天要多花一個小時。\n" * 20,
    }
    for name, text in texts.items():
        data = bytearray(text.encode(name))
        data[len(data) // 2] = 0xFF
        del data[len(data) // 3]
        found = decode(bytes(data), markup=False)
        right = sum(line in found.text for line in set(text.split("\n")))
        assert right == len(set(text.split("\n")))
        lines = found.text.split("\n")
        assert sum(line == text.split("\n")[0] for line in lines) >= 17, name
