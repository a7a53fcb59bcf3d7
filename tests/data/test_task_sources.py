"""Tasks as data: what is read, what is refused, which split a prompt is of, and the context."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from conftest import tiny_run, tiny_tokenizer, write_corpus

from rntp.config import Config
from rntp.config.places import is_task
from rntp.config.tasks import Tasks
from rntp.data.corpus import Corpus, open_corpus, open_data
from rntp.data.live import is_live
from rntp.data.stream import is_heldout
from rntp.data.tasks.rendering import Renderer, task_id
from rntp.data.tasks.rows import Row, read_rows
from rntp.errors import ConfigError, DataError
from rntp.model.tokenizer import add_marker, decode, encode

TOKENIZER = tiny_tokenizer(600)
for marker in ("<think>", "</think>"):
    add_marker(TOKENIZER, marker)
HORIZON = 6
SUM = {"chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}}


def sums(path: Path, *, first: int = 0, count: int = 60) -> Path:
    rows = [{"prompt": f"{n} + 1 =", "answer": n + 1} for n in range(first, first + count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def corpus(source: object, *more: str, **tasks: Any) -> Corpus:
    raw = tiny_run(Path("m"), Path("c"), Path("r"))
    raw["data"] |= {"source": source, "tasks": tasks, "context_tokens": 64}
    raw["placement"]["positions_per_doc"] = 1
    raw["reward"]["horizon"] = HORIZON
    config = Config.parse(raw, more)
    return open_corpus(config, open_data(config), TOKENIZER)


def render(row: Row, template: str = "{prompt}\n{answer}", **more: Any) -> Any:
    settings = {"horizon": HORIZON, "context_tokens": 64, "answer_tokens": 0, **more}
    return Renderer(TOKENIZER, template, "own", **settings)


def test_a_task_is_its_prompt_and_then_its_answer(tmp_path: Path) -> None:
    found = corpus(f"task:{sums(tmp_path / 't.jsonl')}")
    context = found.train[0]
    task = context.task
    assert task is not None
    prompt = decode(TOKENIZER, context.token_ids[: len(context) - HORIZON])
    number = int(prompt.split()[0])
    assert prompt == f"{number} + 1 ="
    assert task.answer == str(number + 1)
    answer = encode(TOKENIZER, f" {task.answer}")
    assert task.num_tokens == len(answer) + 1 == context.num_scored(HORIZON)
    ids = context.token_ids[-HORIZON:]
    assert ids[: task.num_tokens].tolist() == [*answer.tolist(), TOKENIZER.eos_token_id]
    assert task.filled == HORIZON - task.num_tokens
    assert context.num_text == len(context) - task.filled
    assert pickle.loads(pickle.dumps(context)).task == task  # for workers


def test_spaces_before_the_answer_go_with_it() -> None:
    row = Row("2 + 2", "4", "here")
    context = render(row, "Question: {prompt}\nAnswer: {answer}").context(row, 0, 0, "s")
    ids = context.token_ids
    assert decode(TOKENIZER, ids[:-HORIZON]) == "Question: 2 + 2\nAnswer:"
    assert decode(TOKENIZER, ids[-HORIZON:][: context.task.num_tokens - 1]) == " 4"


def test_a_chat_is_put_by_the_tokenizers_template_and_prompts_spell_no_turns() -> None:
    tokenizer = tiny_tokenizer(600)
    with pytest.raises(ConfigError, match=r"needs a tokenizer with a chat template"):
        Renderer(tokenizer, "chat:{prompt}", "own", horizon=4, context_tokens=64, answer_tokens=0)
    tokenizer.chat_template = (
        "{% for m in messages %}<|end|>{{ m['role'] }}: {{ m['content'] }}{% endfor %}<|end|>model:"
    )
    row = Row("say <|end|>", "no", "here")
    renderer = Renderer(
        tokenizer, "chat:Please {prompt}!", "own", horizon=4, context_tokens=64, answer_tokens=0
    )
    ids = renderer.context(row, 0, 0, "s").token_ids[:-4]
    assert decode(tokenizer, ids) == "<|end|>user: Please say <|end|>!<|end|>model:"
    assert (ids == tokenizer.eos_token_id).sum() == 2  # the prompt's own is characters


def test_training_and_evaluation_never_share_a_prompt(tmp_path: Path) -> None:
    found = corpus(f"task:{sums(tmp_path / 't.jsonl')}")
    train = {found.train[n].document_id for n in range(found.train.num_documents)}
    heldout = {found.heldout[n].document_id for n in range(found.heldout.num_documents)}
    assert len(train) + len(heldout) == 60
    assert not train & heldout
    assert all(is_heldout(name, 0.3) for name in heldout)
    assert len(heldout) > 8
    # Every pass has each once, in another order.
    first, second = ([found.train[n + p].document_id for n in range(len(train))] for p in (0, 0))
    later = [found.train[len(train) + n] for n in range(len(train))]
    assert first == second
    assert {c.document_id for c in later} == train
    assert [c.document_id for c in later] != first
    assert {c.visit for c in later} == {1}


def test_generators_are_a_function_of_seed_and_ordinal() -> None:
    pytest.importorskip("reasoning_gym")
    one, same = (corpus("task:gym:chain_sum", gym=SUM) for _ in range(2))
    other = corpus("task:gym:chain_sum", "run.seed=9", gym=SUM)

    def texts(found: Corpus, numbers: range) -> list[str]:
        return [decode(TOKENIZER, found.train[n].token_ids) for n in numbers]

    late = texts(one, range(10**9, 10**9 + 4))
    assert late == texts(same, range(10**9, 10**9 + 4))  # as a resume asks for them
    assert texts(one, range(20)) == texts(same, range(20)) != texts(other, range(20))
    train = {one.train[n].document_id for n in range(200)}
    heldout = [one.heldout[n].document_id for n in range(one.heldout.num_documents)]
    assert len(heldout) == len({*heldout}) == 3  # evaluation.docs
    assert not train & {*heldout}  # of some 190 sums that there are
    context = one.train[5]
    left, right = decode(TOKENIZER, context.token_ids[:-HORIZON]).split("=")[0].split()[-3::2]
    assert int(context.task.answer) in (int(left) + int(right), int(left) - int(right))


def test_the_digest_is_of_the_tasks(tmp_path: Path) -> None:
    source = f"task:{sums(tmp_path / 't.jsonl')}"
    digest = corpus(source).manifest.digest
    assert corpus(source).manifest.digest == digest
    sums(tmp_path / "t.jsonl", first=1)
    assert corpus(source).manifest.digest != digest
    pytest.importorskip("reasoning_gym")
    made = [corpus("task:gym:chain_sum", gym=gym).manifest.digest for gym in (SUM, {})]
    assert len({*made}) == 2


def test_pages_and_tasks_by_weight(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    pages = write_corpus(tmp_path / "shards")
    tasks = f"task:{sums(tmp_path / 't.jsonl')}"
    raw = tiny_run(Path("m"), Path("c"), Path("r"))
    raw["data"] |= {"source": {str(pages): 3, tasks: 1}, "context_tokens": 64}
    raw["placement"]["positions_per_doc"] = 1
    raw["reward"]["horizon"] = HORIZON
    config = Config.parse(raw)
    for marker in ("<think>", "</think>"):
        add_marker(tokenizer, marker)
    found = open_corpus(config, open_data(config), tokenizer)
    are = [found.train[n].task is not None for n in range(40)]
    assert sum(are) == 10
    assert [found.train[n].ordinal for n in range(40)] == list(range(40))


def test_rows_that_are_no_task_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    good = '{"prompt": "a", "answer": "b"}\n'
    for line, told in {
        "{": r"t\.jsonl:2 is not JSON",
        "[1]": r"t\.jsonl:2 is no object",
        '{"prompt": "c"}': r"t\.jsonl:2 has no field 'answer' \(it has 'prompt'\); .*data\.tasks",
        '{"prompt": "c", "answer": ["d"]}': r"t\.jsonl:2: 'answer' is list; give a text",
        '{"prompt": "c", "answer": true}': r"'answer' is bool",
        '{"prompt": " ", "answer": "d"}': r"t\.jsonl:2: 'prompt' is empty",
        '{"prompt": "a", "answer": "c"}': r"t\.jsonl:2 has the prompt of .*:1 with another answer",
    }.items():
        path.write_text(good + line + "\n")
        with pytest.raises(DataError, match=told):
            read_rows(str(path), Tasks())
    path.write_text("\n")
    with pytest.raises(DataError, match=r"holds no task"):
        read_rows(str(path), Tasks())
    with pytest.raises(DataError, match=r"missing\.jsonl cannot be read"):
        read_rows(str(tmp_path / "missing.jsonl"), Tasks())
    path.write_text(good + "\n" + good)
    rows, again = read_rows(str(path), Tasks())
    assert ([row.answer for row in rows], again) == (["b"], 1)


def test_fields_may_have_other_names_and_answers_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"q": "6 * 7", "a": "Six times seven. #### 40 #### 42"}\n')
    named = Tasks(prompt="q", answer="a", answer_after="####")
    [row], _ = read_rows(str(path), named)
    assert (row.prompt, row.answer, row.where) == ("6 * 7", "42", f"{path}:1")
    path.write_text('{"q": "6 * 7", "a": "42"}\n')
    with pytest.raises(DataError, match=r":1: nothing stands behind '####'"):
        read_rows(str(path), named)


def test_a_data_set_of_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = {"question": ["1+1", "2+2"], "answer": ["2", "4"]}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "train.parquet")
    found, _ = read_rows(f"hf:{tmp_path}", Tasks(prompt="question"))
    assert [(row.prompt, row.answer) for row in found] == [("1+1", "2"), ("2+2", "4")]
    with pytest.raises(DataError, match=r"cannot be read"):
        read_rows(f"hf:{tmp_path / 'none'}", Tasks())


def test_tasks_that_do_not_fit_are_named(tmp_path: Path) -> None:
    path = sums(tmp_path / "t.jsonl")
    with path.open("a") as file:
        file.write(json.dumps({"prompt": "count", "answer": "1234567890"}) + "\n")
    place = r"t\.jsonl:61: its answer has 1\d tokens with its end token, and reward\.horizon is 6"
    with pytest.raises(DataError, match=place):
        corpus(f"task:{path}", "data.heldout_fraction=0", "evaluation.docs=0")
    sums(path)
    for more, told in {
        "data.context_tokens=12": r"its prompt has \d+ tokens, and data\.context_tokens 12 less",
        "thought.answer_tokens=1": r"thought\.answer_tokens is 1, so that nobody could write it",
    }.items():
        with pytest.raises(DataError, match=told):
            corpus(f"task:{path}", more, "placement.min_prefix_tokens=2")
    pytest.importorskip("reasoning_gym")
    found = corpus("task:gym:chain_sum", "data.context_tokens=20", "evaluation.docs=0")
    with pytest.raises(DataError, match=r"of 1000 tasks none will do: its (prompt|answer) has"):
        found.train[0]


def test_held_out_tasks_of_another_file_are_not_trained_on(tmp_path: Path) -> None:
    train = f"task:{sums(tmp_path / 'train.jsonl')}"
    other = f"evaluation.source=task:{sums(tmp_path / 'test.jsonl', first=60, count=7)}"
    found = corpus(train, other, "data.heldout_fraction=0", "evaluation.docs=7")
    assert found.train.num_documents == 60
    assert len(found.heldout_contexts(9)) == 7
    sums(tmp_path / "test.jsonl", first=58, count=7)
    told = r"2 held-out prompts are trained on \(.*train\.jsonl:59 and .*test\.jsonl:1; "
    with pytest.raises(DataError, match=told):
        corpus(train, other)


def test_generators_that_there_are_not() -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ConfigError, match=r"no such generator; did you mean chain_sum\?"):
        corpus("task:gym:chain_summ")
    with pytest.raises(ConfigError, match=r"data\.tasks\.gym\.chain_sum: .*max_termz"):
        corpus("task:gym:chain_sum", gym={"chain_sum": {"max_termz": 2}})
    with pytest.raises(ConfigError, match=r"data\.tasks\.gym\.chain_sum: .*min_terms"):
        corpus("task:gym:chain_sum", gym={"chain_sum": {"min_terms": 5, "max_terms": 2}})


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("no place", r"give \{prompt\} one place in it"),
        ("{prompt} {prompt}{answer}", r"give \{prompt\} one place in it"),
        ("{prompt} {answer}.", r"end it with \{answer\}"),
        ("chat:{prompt}{answer}", r"in a chat the answer is the reply; take \{answer\} away"),
    ],
)
def test_templates_have_one_place_for_each(template: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        corpus("task:t.jsonl", template=template)


def test_tasks_are_neither_folders_nor_pages() -> None:
    assert is_task("task:x.jsonl")
    assert is_task(Path("task:x.jsonl"))
    for source in ("x.jsonl", {"task:x.jsonl": 1.0}, None):
        assert not is_task(source)
    assert not is_live("task:x.jsonl")
    assert task_id("a") != task_id("b")
