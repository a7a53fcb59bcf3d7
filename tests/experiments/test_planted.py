"""The planted corpus: its labels, oracle thoughts and entropies against independent solvers."""

import itertools
import math
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

PLANTED = Path(__file__).parents[2] / "experiments" / "planted"
sys.path.insert(0, str(PLANTED))

import make_corpus  # noqa: E402
import pages  # noqa: E402
from scratchpads import THINK_CLOSE, THINK_OPEN, Mix, with_scratchpads  # noqa: E402
from tokenizer import make_tokenizer, vocabulary  # noqa: E402

from rntp.ablate import Experiment  # noqa: E402
from rntp.ablate.grid import plan  # noqa: E402
from rntp.data.stream import ContextStream  # noqa: E402
from rntp.model import load_model  # noqa: E402
from rntp.model.tokenizer import encode, tokenizer_digest  # noqa: E402

PAGES = [pages.make_page(3, i, hops=(2, 3, 4, 5)) for i in range(200)]


def chase(text: str, entry: str, steps: int) -> list[str]:
    """The records of a page's text, followed by an independent reader."""
    after = dict(re.findall(r"^- (\S+) [>=] (\S+)$", text, re.MULTILINE))
    path = []
    for _ in range(steps):
        entry = after[entry]
        path.append(entry)
    return path


def test_every_answer_and_oracle_thought_is_what_the_records_say() -> None:
    kinds = Counter()
    for page in PAGES:
        for question in page.questions:
            before = "".join(page.tokens[: question.index])
            asked = re.search(r"(\w+) (?:after|of) (\w+) is$", before)
            assert asked is not None
            path = chase(page.text, asked[2], question.hops)
            assert [token.strip() for token in question.thought] == [asked[2], *path]
            assert page.tokens[question.index].strip() == path[-1]
            assert page.labels[question.index] == str(question.hops)
            if question.kind == "walk":
                assert asked[1] == pages.STEPS[question.hops]
            else:
                assert path[-1].isdigit()
                assert not path[-2].isdigit()
            kinds[question.kind, question.hops] += 1
    assert set(kinds) == {(kind, n) for kind in ("walk", "assign") for n in (2, 3, 4)} | {
        ("walk", 5)
    }


def test_single_look_ups_are_easy_and_never_thinkable() -> None:
    for page in PAGES[:50]:
        after = dict(re.findall(r"^- (\S+) [>=] (\S+)$", page.text, re.MULTILINE))
        for line in re.findall(r"^Next after (\S+) is (\S+)\.$", page.text, re.MULTILINE):
            assert after[line[0]] == line[1]
        for trail in re.findall(r"^Trail: (.*)\.$", page.text, re.MULTILINE):
            names = trail.split()
            assert all(after[a] == b for a, b in itertools.pairwise(names))


def cycles(n: int) -> list[dict[int, int]]:
    """All single cycles over 0 … n-1."""
    orders = [(0, *rest) for rest in itertools.permutations(range(1, n))]
    return [{order[i]: order[(i + 1) % n] for i in range(n)} for order in orders]


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_one_look_up_either_way_leaves_n_minus_3_names_equally_likely(steps: int) -> None:
    """The entropy without a thought, by enumeration of all cycles of 6 names."""

    def follow(after: dict[int, int]) -> int:
        at = 0
        for _ in range(steps):
            at = after[at]
        return at

    seen = Counter(follow(after) for after in cycles(6) if after[0] == 1 and after[2] == 0)
    assert set(seen) == {3, 4, 5}
    assert len(set(seen.values())) == 1
    walks = [q for page in PAGES for q in page.questions if q.kind == "walk"]
    assert max(q.nats_without for q in walks) == pytest.approx(math.log(10 - 3))


def test_the_entropy_of_a_record_is_that_of_the_cycles_left() -> None:
    """Record i of n has n − i equally likely targets, given those before it."""
    left = cycles(5)
    for record in range(5):
        targets = Counter(after[record] for after in left)
        assert len(targets) == max(5 - (record + 1), 1)
        assert len(set(targets.values())) == 1
        left = [after for after in left if after[record] == min(targets)]
    page = next(p for p in PAGES if "Desks" in p.tokens)
    rows = [i for i, token in enumerate(page.tokens) if i and page.tokens[i - 1] == " >"]
    expected = [math.log(n) for n in (9, 8, 7, 6, 5, 4, 3, 2, 1, 1)]
    assert [page.nats[i] for i in rows] == pytest.approx(expected)
    assert [page.labels[i] for i in rows] == [*"pppppppp", *"xx"]


def test_assignments_leave_three_digits_and_noise_is_uniform() -> None:
    assigns = [q for page in PAGES for q in page.questions if q.kind == "assign"]
    assert {q.nats_without for q in assigns} == {math.log(3)}
    digits: Counter[str] = Counter()
    for index in range(1500):
        page = pages.make_page(9, index)
        start = page.tokens.index("Reference")
        digits.update(page.tokens[start + 1 : start + 6])
        assert page.labels[start + 1 : start + 6] == "iiiii"
        assert page.nats[start + 1] == pytest.approx(math.log(10))
    # 7500 draws: chi-square with 9 degrees of freedom is below 27.9 with probability 0.999.
    assert len(digits) == 10
    assert sum((n - 750) ** 2 / 750 for n in digits.values()) < 27.9


def test_noise_has_the_same_options_on_all_pages_and_a_choice_from_the_page_has_not() -> None:
    """At every place, a line so far: options seen on all pages, beside those of the one token."""
    seen: dict[tuple[str, str], set[str]] = {}
    options: dict[tuple[str, str], set[int]] = {}
    for index in range(600):
        page = pages.make_page(5, index)
        kind = "walk" if "Desks" in page.tokens else "assign"
        for i, label in enumerate(page.labels):
            if label not in "ip" or i < 16:
                continue
            line = "".join(page.tokens[:i]).rpartition("\n")[2]
            # Which name, letter or digit came before does not matter, nor which records.
            place = re.sub(r"(Desks:|Reference|The).*", r"\1", line)
            place = kind + re.sub(r"\b([A-Z][a-z]+|[a-z])(?= (after|>|=))", "…", place)
            seen.setdefault((place, label), set()).add(page.tokens[i])
            options.setdefault((place, label), set()).add(round(math.exp(page.nats[i])))
    noise = {place: sizes for (place, label), sizes in options.items() if label == "i"}
    chosen = {place: sizes for (place, label), sizes in options.items() if label == "p"}
    assert {"walkReference", "assignTrail:", "assignValue of"} <= {*noise}
    assert noise.pop("walkThe") == noise.pop("assignThe") == {6}  # colours and things are two sets
    assert all(sizes == {len(seen[place, "i"])} for place, sizes in noise.items())
    walks = {"walkTrail:", "walkDesks:", "walk- … >", "walk… after"}
    assert walks | {"assign- … =", "assignValue of"} == {*chosen}
    assert all(max(sizes) < len(seen[place, "p"]) for place, sizes in chosen.items())


def test_facts_are_the_same_everywhere() -> None:
    found: dict[str, set[str]] = {}
    for index in range(400):
        text = pages.make_page(4, index).text
        match = re.search(r"The (\w+ \w+) opens at (\d \d)", text)
        assert match is not None
        found.setdefault(match[1], set()).add(match[2])
    assert len(found) == 36
    assert all(len(values) == 1 for values in found.values())
    assert len({value for values in found.values() for value in values}) > 12


def test_a_page_is_a_pure_function_of_its_number() -> None:
    assert pages.make_page(3, 7, hops=(2, 3, 4, 5)) == PAGES[7]
    assert len({page.text for page in PAGES}) == len(PAGES)
    for page in PAGES:
        assert len(page.tokens) == len(page.labels) == len(page.nats)
        assert all(n == 0 for n, c in zip(page.nats, page.labels, strict=True) if c in "e1mx")
        assert all(n > 0 for n, c in zip(page.nats, page.labels, strict=True) if c in "ip2345")


def test_the_tokenizer_is_lossless_and_knows_every_word() -> None:
    tokenizer = make_tokenizer()
    words = set(vocabulary())
    for page in PAGES:
        ids = encode(tokenizer, page.text)
        assert tokenizer.decode(ids.tolist()) == page.text
        assert tokenizer.convert_ids_to_tokens(ids.tolist()) == list(page.tokens)
        assert set(page.tokens) <= words
    assert encode(tokenizer, "<think>").tolist() != [tokenizer.get_vocab()[THINK_OPEN]]


def test_scratchpads_are_right_only_at_questions_and_as_often_as_said() -> None:
    right = total = elsewhere = 0
    for index, page in enumerate(PAGES):
        tokens = with_scratchpads(page, 3, index, Mix(right=0.4))
        oracle = {q.index: list(q.thought) for q in page.questions}
        place, kept, i = 0, [], 0
        while i < len(tokens):
            if tokens[i] == THINK_OPEN:
                close = tokens.index(THINK_CLOSE, i)
                if place in oracle:
                    total += 1
                    right += tokens[i + 1 : close] == oracle[place]
                else:
                    elsewhere += 1
                i = close + 1
                continue
            kept.append(tokens[i])
            place, i = place + 1, i + 1
        assert tuple(kept) == page.tokens
    assert elsewhere > 1500
    assert right / total == pytest.approx(0.4, abs=0.06)
    empty = [THINK_OPEN, THINK_CLOSE]
    pages_of = {
        mix: [with_scratchpads(p, 3, n, mix) for n, p in enumerate(PAGES)]
        for mix in (Mix(), Mix(empty=0.3, harder=12))
    }
    first, last = (
        (sum(t[i : i + 2] == empty for t in made for i in range(len(t))), sum(map(len, made)))
        for made in pages_of.values()
    )
    assert first[0] == 0 < last[0]
    assert last[1] > 1.1 * first[1]
    mix = Mix(pages=0.1)
    assert sum(mix.chosen(0, n) for n in range(2000)) / 2000 == pytest.approx(0.1, abs=0.02)


def test_the_corpus_carries_labels_that_a_context_gives_back(tmp_path: Path) -> None:
    manifest = make_corpus.write_corpus(tmp_path / "corpus", seed=3, num_pages=60)
    tokenizer = make_tokenizer()

    def stream(split: str, context_tokens: int) -> ContextStream:
        return ContextStream(
            manifest,
            lambda text: encode(tokenizer, text),
            seed=0,
            context_tokens=context_tokens,
            min_document_tokens=32,
            heldout_fraction=make_corpus.HELDOUT_FRACTION,
            split=split,  # type: ignore[arg-type]
        )

    hops: dict[str, set[str]] = {"train": set(), "heldout": set()}
    for split, labels in hops.items():
        whole, window = stream(split, 256), stream(split, 64)
        for ordinal in range(whole.num_documents):
            for context in (whole[ordinal], window[ordinal]):
                assert context.labels is not None
                assert len(context.labels.classes) == len(context)
                labels.update(context.labels.classes)
                for index, known in context.labels.oracle.items():
                    answer = tokenizer.decode([int(context.token_ids[index])])
                    assert known.thought.endswith(answer)
                    assert context.labels.classes[index] in "2345"
                    assert 0 < known.gain <= math.log(7)
    assert "4" in hops["train"]
    assert "5" not in hops["train"]
    assert "5" in hops["heldout"]


def test_questions_beyond_training_have_no_class_but_at_their_answer() -> None:
    """Also where one is asked again, and its answer stands on the page."""
    answers = {" ": 0, "5": 0}
    for index in range(150):
        page = pages.make_page(3, index, hops=make_corpus.HELDOUT_HOPS)
        classes = str(make_corpus.labels(page)["classes"])
        assert len(classes) == len(page.tokens)
        for first in (i for i, token in enumerate(page.tokens) if token == "Five"):
            assert classes[first : first + 4] == " " * 4
            answers[classes[first + 4]] += 1
        for i, label in enumerate(classes):
            assert label in (" ", page.labels[i])
        # A label goes only in those lines.
        assert classes.count(" ") <= 5 * page.tokens.count("Five")
    assert answers["5"] > 50
    assert answers[" "] > 0


def test_the_committed_base_looks_up_and_does_not_chase() -> None:
    """One look-up in a forward pass nearly always; two or more no better than its entropy says."""
    model = load_model(str(PLANTED / "base"))
    assert 1e6 <= model.num_parameters <= 10e6
    assert tokenizer_digest(model.tokenizer) == tokenizer_digest(make_tokenizer())
    hf = model.hf
    hf.set_attn_implementation("sdpa")
    right: list[bool] = []
    nll: list[float] = []
    known: list[float] = []
    for index in range(40):
        page = pages.make_page(77, index)
        ids = encode(model.tokenizer, page.text)
        with torch.no_grad():
            logp = hf(ids[None]).logits[0].log_softmax(-1)
        for i, label in enumerate(page.labels):
            if label == "1":
                right.append(bool(logp[i - 1].argmax() == ids[i]))
        nll += [-float(logp[q.index - 1, ids[q.index]]) for q in page.questions]
        known += [q.nats_without for q in page.questions]
    assert sum(right) / len(right) > 0.95
    assert sum(nll) > 0.95 * sum(known)


@pytest.mark.parametrize(
    "path", sorted((PLANTED / "ablations").glob("*.yaml")), ids=lambda path: path.stem
)
def test_every_ablation_is_valid_and_has_its_controls(path: Path) -> None:
    experiment = Experiment.load(path)
    assert len(experiment.seeds) >= 3
    assert {"no thinking, equal FLOPs", "random reward"} <= set(experiment.controls)
    assert {"another's thought", "pause", "truncated"} <= set(experiment.columns)
    runs = plan(experiment)
    assert len({run.folder for run in runs}) == len(runs)
    digests = {run.config.digest() for run in runs}
    assert len(digests) == len(runs)  # no two arms are the same run
