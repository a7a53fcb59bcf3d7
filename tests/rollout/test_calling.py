"""Thoughts that call tools: what is drawn, what is given, and that nothing else can tell them from
thoughts whose tokens were all drawn."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ARCHITECTURES, compute_norms_in_float64, tiny_run, tiny_tokenizer
from torch import Tensor

from rntp import Trainer
from rntp.config import Config
from rntp.errors import ConfigError
from rntp.evaluation.controls import CONTROLS
from rntp.model import LanguageModel, load_model
from rntp.model.thought_tree import thought_branch
from rntp.model.tokenizer import encode
from rntp.objective.forward import build_tree, forward
from rntp.rng import uniform
from rntp.rollout import engine as engine_module
from rntp.rollout.engine import InProcessEngine
from rntp.rollout.interleaved import InterleavedEngine
from rntp.rollout.sampling import draw
from rntp.rollout.tool_calls import ToolCalls, bare_ids, serving
from rntp.runtime.files import read_json_lines
from rntp.tools import REGISTRY, Page, Tool, register
from rntp.tools.cache import Cache
from rntp.tools.desk import Desk
from rntp.tools.registry import PlainTool
from rntp.types import Context, EarlierThought, NextTokenStats, Rollout, Thought

MARKERS = ("<tool>", "</tool>", "<result>", "</result>")
SEED, BUDGET, HORIZON = 5, 24, 3


def load(folder: Path, dtype: torch.dtype = torch.float32, sharing: str = "auto") -> LanguageModel:
    model = load_model(str(folder), dtype=dtype, sharing=sharing, tool_markers=MARKERS)
    if dtype == torch.float64:
        compute_norms_in_float64(model.hf)
    return model


def context(ordinal: int, length: int = 24) -> Context:
    generator = torch.Generator().manual_seed(100 + ordinal)
    return Context(ordinal, f"doc{ordinal}", torch.randint(1, 318, (length,), generator=generator))


def place(context: Context, next_token: NextTokenStats) -> tuple[int, ...]:
    return (3, 10, len(context) - 4)


def shouts(text: str, page: Page) -> str:
    return text.upper() + "!"


@contextmanager
def called(
    model: LanguageModel, function: Callable[[str, Page], str] = shouts, calls: int = 2
) -> Iterator[ToolCalls]:
    tools: dict[str, Tool] = {"shout": PlainTool(function, "1", True, None)}
    desk = Desk(tools, Cache(None), seconds=30.0, workers=3)
    yield ToolCalls(model, desk, calls=calls, result_tokens=6, horizon=HORIZON)
    desk.close()


def engine(model: LanguageModel, tools: ToolCalls | None, **more: object) -> InProcessEngine:
    settings = {"thoughts": 3, "budget": BUDGET, "temperature": 1.0, "seed": SEED, "slots": 32}
    made = InProcessEngine(model, **{**settings, **more})
    made.tools = tools
    return made


Script = dict[tuple[int, int, int], list[int]]


def scripted(script: Script) -> Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]:
    """Draws what is written for a thought (ordinal, position, member), and close markers after it:
    every draw's chance is a number of its own."""
    table = {
        float(uniform(SEED, "thought", *which, token=step)): token
        for which, tokens in script.items()
        for step, token in enumerate(tokens)
    }

    def put(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        ids = torch.tensor([table.get(float(u), 1) for u in uniforms])
        logp = torch.log_softmax(logits / temperature, dim=-1)
        return ids, logp.gather(1, ids[:, None])[:, 0]

    return put


def busy(model: LanguageModel) -> Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]:
    """Sampling that opens and closes many calls, and some thoughts and answers."""

    def sample(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        ids, _ = draw(logits, uniforms, temperature)
        opening, closing = model.tool_ids[:2]
        ids = torch.where(uniforms < 0.25, opening, ids)
        ids = torch.where((uniforms >= 0.25) & (uniforms < 0.5), closing, ids)
        ids = torch.where((uniforms >= 0.5) & (uniforms < 0.55), model.think_close_id, ids)
        ids = torch.where(uniforms > 0.9, model.eos_id, ids)
        logp = torch.log_softmax(logits / temperature, dim=-1)
        return ids, logp.gather(1, ids[:, None])[:, 0]

    return sample


def thoughts_of(rollouts: list[Rollout]) -> list[Thought]:
    return [t for r in rollouts for group in r.thoughts for t in group]


def words(model: LanguageModel, text: str) -> list[int]:
    return encode(model.tokenizer, text).tolist()


def test_a_result_is_spliced_behind_its_call(model_folders: dict[str, Path]) -> None:
    model = load(model_folders["llama"])
    opening, closing, result, end = model.tool_ids
    begin, call, after = words(model, "see: "), words(model, "shout a dog"), words(model, "so.")
    first = [*begin, opening, *call, closing, *after, model.think_close_id]
    nobody = [opening, *words(model, "whisper x"), closing, model.think_close_id]
    script: Script = {(0, 3, 0): first, (0, 3, 1): nobody, (0, 3, 2): [model.think_close_id]}
    with called(model) as tools:
        (rollout,) = engine(model, tools, draw=scripted(script), budget=60).sample(
            [context(0)], lambda c, n: (3,)
        )
    one, two, three = rollout.thoughts[0]
    given = [result, *words(model, "A DOG!")[:6], end]
    assert one.sampled_ids.tolist() == [
        *begin, opening, *call, closing, *given, *after, model.think_close_id
    ]  # fmt: skip
    start = len(begin) + len(call) + 2
    assert one.given.nonzero().flatten().tolist() == list(range(start, start + len(given)))
    assert one.closed
    assert one.num_tokens == len(first) - 1
    assert one.num_drawn == len(first)
    assert one.drawn(one.sampled_ids).tolist() == first
    assert (one.sampled_logprobs[one.given] == 0).all()
    assert (one.drawn_logprobs < 0).all()
    (made,) = one.calls
    assert (made.name, made.arguments, made.result, made.failure) == (
        "shout",
        "a dog",
        "A DOG!",
        "",
    )
    assert two.calls[0].failure == "unknown_tool"
    assert two.sampled_ids.tolist()[-2 - len(words(model, "no such tool")[:6]) :][-2] == end
    assert three.calls == ()
    assert len(three.given) == 0
    assert rollout.num_sampled == len(first) + len(nobody) + 1


def test_a_tool_sees_the_page_up_to_the_position(model_folders: dict[str, Path]) -> None:
    model, seen = load(model_folders["llama"]), []

    def looks(text: str, page: Page) -> str:
        seen.append(page)
        return ""

    opening, closing = model.tool_ids[:2]
    script: Script = {(4, 5, 0): [opening, *words(model, "shout"), closing, model.think_close_id]}
    page = context(4)
    earlier = EarlierThought(2, torch.tensor([model.think_open_id, 7, model.think_close_id]))
    ids = torch.cat([page.token_ids[:2], earlier.token_ids, page.token_ids[2:]])
    longer = Context(4, "doc4", ids, seen=(earlier,))
    assert bare_ids(longer).tolist() == page.token_ids.tolist()
    with called(model, looks) as tools:
        for given, position in ((page, 5), (longer, 8)):
            engine(model, tools, thoughts=1, draw=scripted(script), slots=40).sample(
                [given], lambda c, n, at=position: (at,)
            )
            found, withheld = tools._page(given, position)
            assert found == seen[0]
            assert found.token_ids == tuple(page.token_ids[:5].tolist())
            assert (withheld.before + withheld.continuation) in withheld.page
    assert len(seen) == 1  # with a thought before it, it is the same page: from the cache


def test_limits_of_calls_of_results_and_of_draws(model_folders: dict[str, Path]) -> None:
    model = load(model_folders["llama"])
    opening, closing, result, end = model.tool_ids
    call = [opening, *words(model, "shout " + "dog " * 9), closing]
    one = 5 * call  # the fifth is the last that is drawn
    lone = [closing, result, 3, end, model.think_close_id]  # nothing was opened: nobody is called
    cut = call  # the budget ends with the call
    script: Script = {(0, 3, 0): one, (0, 3, 1): lone}
    with called(model, calls=2) as tools:
        (rollout,) = engine(model, tools, draw=scripted(script), budget=len(one)).sample(
            [context(0)], lambda c, n: (3,)
        )
        (short,) = engine(
            model, tools, thoughts=1, draw=scripted({(0, 3, 0): cut}), budget=len(cut)
        ).sample([context(0)], lambda c, n: (3,))
    many, none, _ = rollout.thoughts[0]
    assert [c.failure for c in many.calls] == ["", "", "too_many_calls", "too_many_calls"]
    assert many.num_given == 2 * 8
    assert many.num_drawn == len(one)
    assert not many.closed
    assert none.calls == ()
    assert none.num_given == 0
    (ended,) = short.thoughts[0]
    assert ended.calls == ()
    assert ended.sampled_ids.tolist() == cut


@pytest.mark.parametrize("answer_tokens", [0, 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sampler_tree_and_one_sequence_agree(
    model_folders: dict[str, Path], architecture: str, answer_tokens: int
) -> None:
    """Log-probs of what was drawn: as sampled, in the token tree, and by the model's own attention
    on one plain sequence, in float64; and the gradients of their sum."""
    model = load(model_folders[architecture], torch.float64)
    with called(model) as tools:
        rollouts = engine(
            model, tools, temperature=0.75, draw=busy(model), answer_tokens=answer_tokens
        ).sample([context(0), context(1, 17)], place)
    thoughts = thoughts_of(rollouts)
    assert {t.closed for t in thoughts} == {True, False}
    assert sum(t.num_given > 0 for t in thoughts) >= 5
    assert {c.failure for t in thoughts for c in t.calls} >= {"unknown_tool"}

    tree = build_tree(model, rollouts, HORIZON)
    outputs = forward(model, tree, temperature=0.75)
    in_tree = outputs.thought_logp_M
    sampled = torch.cat([t.drawn_logprobs for t in thoughts])
    assert len(in_tree) == len(sampled) == sum(t.num_drawn for t in thoughts)
    assert len(tree.tree.token_ids) > len(sampled)
    in_tree.sum().backward()
    gradient = [p.grad.clone() for p in model.hf.parameters() if p.grad is not None]
    model.hf.zero_grad()
    model.hf.set_attn_implementation("sdpa")
    plain, think = [], []
    for rollout in rollouts:
        for position, group in zip(rollout.positions, rollout.thoughts, strict=True):
            for t in group:
                page = rollout.context.token_ids
                branch = thought_branch(
                    t.sampled_ids, t.closed, model.think_open_id, model.think_close_id
                )
                ids = torch.cat([page[:position], branch, t.answer_ids])
                logp = torch.log_softmax(model.hf(ids[None]).logits[0] / 0.75, -1)
                told = logp[:-1].gather(1, ids[1:, None])[:, 0]
                own = told[position : position + len(t.sampled_ids)]
                plain.append(t.drawn(own))
                plain.append(told[len(told) - len(t.answer_ids) :])
                judged = torch.cat([page[:position], branch, page[position : position + HORIZON]])
                logp = torch.log_softmax(model.hf(judged[None]).logits[0], -1)
                think.append(logp[-HORIZON - 1 : -1].gather(1, judged[-HORIZON:, None])[:, 0])
    together = torch.cat(plain)
    torch.testing.assert_close(in_tree, together, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(sampled.double(), together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        outputs.think_logp_PGH.flatten(), torch.cat(think), atol=1e-12, rtol=1e-12
    )
    together.sum().backward()
    other = [p.grad for p in model.hf.parameters() if p.grad is not None]
    for one, two in zip(gradient, other, strict=True):
        torch.testing.assert_close(one, two, atol=1e-10, rtol=1e-10)


def test_controls_change_what_was_given_and_nothing_else(model_folders: dict[str, Path]) -> None:
    model = load(model_folders["llama"])
    opening, closing, result, end = model.tool_ids

    def script(say: str) -> list[int]:
        return [opening, *words(model, f"shout {say}"), closing, 5, model.think_close_id]

    scripts: Script = {(0, 3, 0): script("a"), (1, 3, 0): script("dog"), (1, 9, 0): [5]}
    with called(model) as tools:
        rollouts = engine(model, tools, thoughts=1, draw=scripted(scripts), budget=30).sample(
            [context(0), context(1)], lambda c, n: (3, 9)
        )
    first, second = (r.thoughts[0][0] for r in rollouts)
    swapped = CONTROLS["other_results"](rollouts, model.tokenizer)
    assert [r.positions for r in swapped] == [(3,), (3,)]  # nothing was called at 9
    one, other = (r.thoughts[0][0] for r in swapped)
    for changed, own, donor in ((one, first, second), (other, second, first)):
        assert changed.drawn(changed.sampled_ids).tolist() == own.drawn(own.sampled_ids).tolist()
        assert changed.sampled_ids[changed.given].tolist() == (
            donor.sampled_ids[donor.given].tolist()
        )
        assert changed.num_tokens == own.num_tokens
    bare = CONTROLS["no_results"](rollouts, model.tokenizer)[1].thoughts[0][0]
    assert bare.sampled_ids[bare.given].tolist() == [result, end]
    assert bare.sampled_ids.tolist()[-2:] == [5, model.think_close_id]
    assert CONTROLS["other_results"](rollouts[:1], model.tokenizer) == []


def same(one: list[Thought], other: list[Thought]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a.sampled_ids, b.sampled_ids)
        and torch.equal(a.sampled_logprobs, b.sampled_logprobs)
        and torch.equal(a.given, b.given)
        and a.calls == b.calls
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("thoughts", [3, 16])
def test_when_an_outcome_comes_and_who_is_beside_it_changes_nothing(
    model_folders: dict[str, Path], thoughts: int
) -> None:
    model = load(model_folders["llama"])
    pages = [context(0), context(1, 17), context(2)]

    def late(text: str, page: Page) -> str:
        time.sleep(0.002 * (len(text) % 5))
        return shouts(text, page)

    def names(text: str) -> list[int]:
        return words(model, text)

    def some(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        """As `busy`, with the tool's name behind an open marker, so that calls reach it."""
        ids, _ = busy(model)(logits, uniforms, temperature)
        spelt = torch.tensor(names("shout "))
        pick = spelt[(uniforms * 1000).long() % len(spelt)]
        ids = torch.where((uniforms > 0.55) & (uniforms < 0.6), pick, ids)
        logp = torch.log_softmax(logits / temperature, dim=-1)
        return ids, logp.gather(1, ids[:, None])[:, 0]

    found = []
    for function, contexts in ((shouts, pages), (late, pages), (shouts, pages[1:2])):
        with called(model, function) as tools:
            rollouts = engine(model, tools, thoughts=thoughts, draw=some).sample(contexts, place)
        found.append(thoughts_of(rollouts))
    assert any(t.calls for t in found[0])
    assert same(found[0], found[1])
    each = len(found[2])
    assert same(found[0][each : 2 * each], found[2])


def test_others_decode_on_while_a_call_runs(model_folders: dict[str, Path]) -> None:
    """The call ends only once another thought, drawn step by step, has come to its own call."""
    model, reached = load(model_folders["llama"]), threading.Event()

    def waits(text: str, page: Page) -> str:
        if text == "b":
            reached.set()
        return str(reached.wait(20))

    opening, closing = model.tool_ids[:2]
    one = [opening, *words(model, "shout a"), closing, model.think_close_id]
    other = [5] * 20 + [opening, *words(model, "shout b"), closing, model.think_close_id]
    with called(model, waits) as tools:
        (rollout,) = engine(
            model, tools, thoughts=2, budget=60, draw=scripted({(0, 3, 0): one, (0, 3, 1): other})
        ).sample([context(0)], lambda c, n: (3,))
    assert [t.calls[0].result for t in rollout.thoughts[0]] == ["True", "True"]


def test_interleaved_thoughts_carry_their_results(model_folders: dict[str, Path]) -> None:
    model = load(model_folders["llama"])
    with called(model) as tools:
        inner = engine(model, tools, draw=busy(model), slots=24 + 2 * (BUDGET + 18))
        rollouts = InterleavedEngine(inner, model, SEED).sample([context(0)], place)
    assert len(rollouts) == 3
    for before, after in pairwise(rollouts):
        stands = after.context.seen[-1].token_ids.tolist()
        markers = model.think_open_id, model.think_close_id
        branches = [
            thought_branch(t.sampled_ids, t.closed, *markers).tolist() for t in before.thoughts[0]
        ]
        assert stands in branches
    assert bare_ids(rollouts[-1].context).tolist() == context(0).token_ids.tolist()


E = encode(tiny_tokenizer(), "e").item()  # a letter that is a token names the tool of a run


def often(logits: Tensor, uniforms: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Sampling that writes little else than calls of the tool `e`."""
    opening = logits.shape[1] - 4
    ids = torch.full(uniforms.shape, E)
    ids[uniforms < 0.4], ids[uniforms > 0.6] = opening, opening + 1
    logp = torch.log_softmax(logits / temperature, dim=-1)
    return ids, logp.gather(1, ids[:, None])[:, 0]


@pytest.fixture
def tool_run(
    model_folders: dict[str, Path], corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Path], dict]]:
    """A raw config whose policy calls a lot, by luck."""
    monkeypatch.setattr(engine_module, "draw", often)

    @register("e", version="1", reads_page=True)
    def echo(arguments: str, page: Page) -> str:
        return page.text[-20:]

    def raw(run_dir: Path) -> dict:
        config = tiny_run(model_folders["llama"], corpus, run_dir)
        config["thought"]["tools"] = {"use": {"e": None}, "result_tokens": 5}
        config["thought"]["thought_tokens"] = 8
        config["evaluation"]["controls"] = ["other_results", "no_results", "shuffled"]
        return config

    yield raw
    del REGISTRY["e"]


def records(folder: Path) -> list[dict]:
    rows = read_json_lines(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if not k.startswith("time/")} for row in rows]


def test_a_run_with_tools_resumes_bit_for_bit(
    tool_run: Callable[[Path], dict], tmp_path: Path
) -> None:
    Trainer(Config.parse(tool_run(tmp_path / "whole"))).fit()
    raw = tool_run(tmp_path / "parts")
    raw["run"]["steps"] = 2
    Trainer(Config.parse(raw)).fit()
    Trainer(Config.parse(tool_run(tmp_path / "parts"))).fit()
    whole, parts = records(tmp_path / "whole"), records(tmp_path / "parts")
    assert sum(row["tools/calls"] for row in whole) > 0
    assert sum(row["tokens/given"] for row in whole) > 0
    assert [row["step"] for row in whole] == [1, 2, 3, 4]
    for one, other in zip(whole, parts, strict=True):
        assert {k: v for k, v in one.items() if "memory" not in k} == {
            k: v for k, v in other.items() if "memory" not in k
        }
    evaluated = [
        json.loads((tmp_path / name / "eval" / "step_00000004.json").read_text())
        for name in ("whole", "parts")
    ]
    assert evaluated[0]["tools"] == evaluated[1]["tools"]
    assert evaluated[0]["controls"] == evaluated[1]["controls"]
    assert evaluated[0]["tools"]["calls_per_thought"] > 0
    rows = read_json_lines(tmp_path / "whole" / "rollouts" / "step_00000001.jsonl")
    called = [row for row in rows if row.get("calls")]
    assert called
    made = [call for row in called for call in row["calls"]]
    assert {call["failure"] for call in made} >= {""}
    assert any(call["name"] == "e" and len(call["result"]) == 20 for call in made)
    for row in called:
        assert len(row["given"]) == len(row["thought_ids"]) - 1 - (not row["closed"])
        assert row["num_tokens"] + sum(row["given"]) == len(row["thought_ids"]) - 2
        assert sum(row["given"]) >= 2


PROGRAM = """
import os, signal, sys
from pathlib import Path
import torch
from rntp import Trainer
from rntp.config import Config
from rntp.rollout import engine
from rntp.tools import register
from test_calling import often

engine.draw = often
folder, killed = Path(sys.argv[1]), Path(sys.argv[2])
count = 0

@register("e", version="1", reads_page=True)
def echo(arguments, page):
    global count
    count += 1
    if count == 7 and not killed.exists():
        killed.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return page.text[-20:]

Trainer(Config.load(folder)).fit()
print("calls", count)
"""


@pytest.mark.slow
def test_kill_minus_nine_in_the_middle_of_a_call(
    tool_run: Callable[[Path], dict], tmp_path: Path
) -> None:
    """The run goes on as if nothing had happened, and repeats no call that a thought has read."""
    path = os.pathsep.join([*sys.path, str(Path(__file__).parent)])
    counts = []
    for name, codes in (("whole", [0]), ("killed", [-signal.SIGKILL, 0])):
        raw = tool_run(tmp_path / name)
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(raw))
        mark = tmp_path / "mark" if name == "killed" else tmp_path
        for code in codes:
            done = subprocess.run(
                [sys.executable, "-c", PROGRAM, str(tmp_path / f"{name}.yaml"), str(mark)],
                env={**os.environ, "PYTHONPATH": path},
                capture_output=True,
                text=True,
            )
            assert done.returncode == code, done.stderr
        counts.append(int(done.stdout.split()[-1]))
    whole, killed = records(tmp_path / "whole"), records(tmp_path / "killed")
    assert counts[0] > counts[1] > 0
    for one, other in zip(whole, killed, strict=True):
        assert {k: v for k, v in one.items() if "memory" not in k} == {
            k: v for k, v in other.items() if "memory" not in k
        }
    for step in (1, 2, 3, 4):
        name = f"rollouts/step_{step:08d}.jsonl"
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_a_run_in_which_nobody_calls_has_nothing_to_say_of_calls(
    tool_run: Callable[[Path], dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_module, "draw", draw)
    raw = tool_run(tmp_path / "run")
    raw["run"]["steps"] = 1
    Trainer(Config.parse(raw)).fit()
    (row,) = records(tmp_path / "run")
    assert (row["tools/calls"], row["tokens/given"]) == (0, 0)
    found = json.loads((tmp_path / "run" / "eval" / "step_00000001.json").read_text())
    assert "tools" not in found
    assert set(found["controls"]) == {"shuffled"}


def test_tools_that_are_not_there_end_the_run_at_start(
    tool_run: Callable[[Path], dict], tmp_path: Path
) -> None:
    raw = tool_run(tmp_path / "run")
    raw["thought"]["tools"]["use"] = {"serach": None}
    with pytest.raises(
        ConfigError, match="there is no tool 'serach'; there are: e, python, recall, search"
    ):
        Trainer(Config.parse(raw))
    raw["thought"]["tools"]["use"] = {"python": {"second": 3}}
    with pytest.raises(ConfigError, match="python cannot be opened with"):
        Trainer(Config.parse(raw))
    raw["thought"]["tools"]["use"] = {"search": {"index": str(tmp_path / "none")}}
    with pytest.raises(Exception, match="holds no index; build one"):
        Trainer(Config.parse(raw))
    assert not (tmp_path / "run").exists()
    raw["thought"]["tools"]["markers"] = ["<a>", "<a>", "<b>", "<c>"]
    with pytest.raises(ConfigError, match="must all differ"):
        Config.parse(raw)


def test_a_config_without_tools_is_the_run_that_it_was(
    model_folders: dict[str, Path], corpus: Path, tmp_path: Path
) -> None:
    raw = tiny_run(model_folders["llama"], corpus, tmp_path / "run")
    facts = Config.parse(raw).identity()
    assert "tools" not in facts["thought"]
    raw["thought"]["tools"] = {"use": {"python": None}, "workers": 5}
    config = Config.parse(raw)
    assert config.identity()["thought"]["tools"]["use"] == {"python": None}
    assert "workers" not in config.identity()["thought"]["tools"]
    assert config.span_tokens - Config.parse({**raw, "thought": {**raw["thought"], "tools": {}}}
    ).span_tokens == 2 * 66  # fmt: skip


def test_serving_does_nothing_without_tools(model_folders: dict[str, Path], corpus: Path) -> None:
    config = Config.parse(tiny_run(model_folders["llama"], corpus, Path("run")))
    model = load(model_folders["llama"])
    made = engine(model, None)
    with serving(made, model, config):
        assert made.tools is None
