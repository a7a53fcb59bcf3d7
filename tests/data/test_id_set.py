"""A set of names without the names."""

from rntp.data.id_set import IdSet


def test_it_is_a_set_and_stays_small() -> None:
    names, known = IdSet(), set()
    for n in range(30_000):
        name = f"name-{n * n % 20_011}"
        assert (name in names) == (name in known)
        names.add(name)
        known.add(name)
        assert len(names) == len(known)
    assert 9_000 < len(known) < 20_011
    assert all(name in names for name in known)
    assert not any(f"other-{n}" in names for n in range(20_000))
    assert names.num_bytes / len(names) < 46


def test_names_that_share_their_first_place_are_told_apart(monkeypatch) -> None:
    from rntp.data import id_set

    # One place for all: every look-up goes along the whole table, and around its end.
    monkeypatch.setattr(id_set, "_key", lambda name: b"\xff" * 8 + name.encode().rjust(8, b"x"))
    names = IdSet()
    for n in range(300):
        names.add(f"a{n}")
    assert len(names) == 300
    assert all(f"a{n}" in names for n in range(300))
    assert "a300" not in names
