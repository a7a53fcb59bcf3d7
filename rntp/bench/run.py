"""The four benches: what they compare, what they check, what they report."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from rntp_kernels import linear_logprob_top1
from torch import Tensor

from rntp.bench import peers
from rntp.bench.agreement import Outcome, difference, gradients_of, relative_difference
from rntp.bench.clock import Progress, Timing, interleaved, load_average, matmul_rate
from rntp.bench.job import Job
from rntp.bench.sizes import NAMES, Sizes
from rntp.bench.unshared import Unshared
from rntp.errors import ConfigError
from rntp.model import Head, LanguageModel, cast_parameters
from rntp.model.tree_sizes import learning_tokens, tree_tokens, unshared_tokens
from rntp.objective.quantities import loss_reads
from rntp.objective.rewards_and_advantages import sampler_logp
from rntp.runtime.memory import keep_freed_memory
from rntp.runtime.provenance import environment
from rntp.training.estimate import Shape

OURS = "rntp"
UNSHARED = "unshared loop (transformers)"


@dataclass(frozen=True)
class Bench:
    """What is timed, and what shows that all compute the same.

    providers: by name. reference: the one that speed-ups divide. outcomes: what a provider
    computes, for those that can be compared. facts: counts of work. skipped: peers that did not
    run, with the reason.
    """

    providers: Mapping[str, Callable[[], object]]
    reference: str
    outcomes: Mapping[str, Callable[[], Outcome]]
    facts: Mapping[str, float]
    skipped: Mapping[str, str]


def head(job: Job) -> Bench:
    """Forward and backward of log-prob and entropy at the rows that the step has."""
    sizes, model = job.sizes, job.model
    rows = sizes.branches * (sizes.budget + sizes.horizon)
    weight = model.head[: model.vocabulary].detach().clone().requires_grad_()
    vocabulary, width = weight.shape
    bias = None if model.bias is None else model.bias[:vocabulary].detach()
    shape = replace(model.shape, vocabulary=None)
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(vocabulary, (rows,), generator=generator).to(model.device)
    # Hidden states that lean to their targets: flat logits would flatter gradient filters.
    noise = torch.randn(rows, width, generator=generator).to(model.device)
    lean = weight.detach()[targets].float()
    scale = 3.0 / lean.square().sum(1, keepdim=True).sqrt().clamp_min(1e-6)
    hidden = (lean * (scale * scale) + 0.5 * noise * lean.std()).to(weight.dtype)
    hidden = hidden.detach().requires_grad_()
    signs = torch.randn(rows, generator=generator).to(model.device)

    def timed(scores: Callable[[], tuple[Tensor, ...]]) -> Callable[[], float]:
        def work() -> float:
            hidden.grad = weight.grad = None
            logp, entropy, *_ = scores()
            total = (signs * logp + 0.01 * entropy).sum()
            total.backward()
            return float(total.detach())

        return work

    def outcome(work: Callable[[], float]) -> Outcome:
        loss = work()
        assert hidden.grad is not None
        assert weight.grad is not None
        return Outcome(loss, {"hidden": hidden.grad.float(), "weight": weight.grad.float()})

    operands = hidden, weight, targets
    own = {
        OURS: timed(lambda: linear_logprob_top1(*operands, bias=bias, shaping=shape.shaping)),
        "plain autograd": timed(lambda: peers.plain_head(*operands, bias, shape.scaled)),
    }
    found, skipped = peers.heads(hidden, weight, targets, signs)
    if bias is not None or shape != Head():
        reason = "has no bias, scale or soft cap as this model's head has"
        found, skipped = {}, dict.fromkeys([*found, *skipped], reason)
    outcomes = {name: partial(outcome, work) for name, work in own.items()}
    facts: dict[str, float] = {"rows": rows, "hidden": width, "vocabulary": vocabulary}
    facts["gigabytes of logits not kept"] = 4e-9 * rows * vocabulary
    return Bench(own | found, "plain autograd", outcomes, facts, skipped)


def tree(job: Job) -> Bench:
    """Forward, rewards and backward on the same thoughts, shared and unshared."""
    unshared = Unshared(job)
    providers = {
        OURS: lambda: _cleared(job, lambda: job.backward(job.rollouts)),
        UNSHARED: lambda: _cleared(job, lambda: unshared.backward(job.rollouts)),
    }
    return Bench(providers, UNSHARED, _gradients(job, unshared), _tokens(job), {})


def rollout(job: Job) -> Bench:
    """Sampling: every branch of a page at once against one copy of its keys, or `generate`.

    The two draw different thoughts, so what is compared is the log-prob of ours: as the sampler
    noted it, and as the usual scoring forward finds it.
    """
    unshared = Unshared(job)
    sizes = job.sizes
    tokens = sizes.branches * sizes.budget
    facts = {"branches": sizes.branches, "sampled tokens": tokens}
    outcomes = {
        OURS: lambda: _logp(sampler_logp(job.rollouts)),
        UNSHARED: lambda: _logp(unshared.thought_logp(job.rollouts)),
    }
    return Bench({OURS: job.sample, UNSHARED: unshared.sample}, UNSHARED, outcomes, facts, {})


def step(job: Job) -> Bench:
    """Sampling, forward, rewards, advantages, loss and backward."""
    unshared = Unshared(job)

    def ours() -> None:
        _cleared(job, job.step)

    def usual() -> None:
        # Its own thoughts cost as much as ours; training on ours keeps the sizes equal.
        unshared.sample()
        _cleared(job, lambda: unshared.backward(job.rollouts))

    found, skipped = peers.steps(job)
    providers = {OURS: ours, UNSHARED: usual} | found
    return Bench(providers, UNSHARED, _gradients(job, unshared), _tokens(job), skipped)


BENCHES: dict[str, Callable[[Job], Bench]] = dict(
    zip(NAMES, (head, tree, rollout, step), strict=True)
)


def run(
    name: str,
    model: LanguageModel,
    sizes: Sizes,
    *,
    dtype: torch.dtype = torch.float32,
    repeats: int = 3,
    warm_up: int = 1,
    curve: Mapping[str, list[int]] | None = None,
    continuation_weight: float = 0.0,
    say: Progress = lambda text: None,
    chosen: Sequence[str] = ("all",),
) -> dict[str, Any]:
    """One bench as a JSON-able dict; see `report` for its shape.

    All providers must first agree in float32. Then the model goes over to `dtype`, in which they
    are timed, and must be as close to the float32 gradients of the reference as the reference
    itself comes in that type (`rounding`).

    model: in float32; in `dtype` afterwards. curve: also rntp alone at other values of one size
    each, {"thoughts": [2, 4, 8], …}. continuation_weight: see `Job`. chosen: peers that are timed
    (`rntp.bench.peers.CHOICES`); the reference is compared with in any case. A peer that fails is
    left out and named with the reason.
    Raises ConfigError if a provider computes something else than the reference.
    """
    keep_freed_memory()
    cast_parameters(model.hf, torch.float32)
    job = Job(model, sizes, continuation_weight)
    load = load_average()
    bench = BENCHES[name](job)
    exact = bench.outcomes[bench.reference]()
    agreement = _checked(name, bench, exact, bound=1e-3)
    rounding: dict[str, float] = {}
    if dtype != torch.float32:
        cast_parameters(model.hf, dtype)
        bench = BENCHES[name](job)
        if name != "rollout":  # in another type other thoughts are drawn
            rounding = _rounding(name, bench, exact)
    del exact
    timed = {n: w for n, w in bench.providers.items() if n == OURS or peers.is_chosen(n, chosen)}
    failed, peaks = dict[str, str](), dict[str, int]()
    timings = interleaved(
        timed,
        repeats=repeats,
        warm_up=warm_up,
        say=say,
        failed=failed,
        peaks=peaks,
        needed=(OURS,),
    )
    bench = replace(bench, skipped={**bench.skipped, **failed})
    rate = matmul_rate(model.head.dtype, model.device)
    result = report(name, bench, timings, peaks) | {
        "agreement": agreement,
        "rounding": rounding,
        "sizes": sizes.as_dict(),
        "continuation_weight": continuation_weight,
        "model": model.spec,
        "dtype": str(model.head.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "load_average": {"before": load, "after": load_average()},
        "matmul_gflops": rate / 1e9,
        "environment": _environment(model),
    }
    if name == "step":
        shape = Shape.of(model.hf)
        done = step_work(shape, sizes, bench.facts)
        result["share_of_matmul_rate"] = done / timings[OURS].median / rate
    if curve:
        result["curve"] = _curve(name, job, curve, repeats, say)
    return result


def report(
    name: str, bench: Bench, timings: Mapping[str, Timing], peaks: Mapping[str, int]
) -> dict[str, Any]:
    """Medians in seconds, spreads, how many times slower than rntp each provider is, and the most
    memory that was in use while it ran (of the process, without a GPU)."""
    own = timings[OURS].median
    return {
        "bench": name,
        "reference": bench.reference,
        "providers": {
            provider: {
                "median_s": timing.median,
                "spread": timing.spread,
                "seconds": list(timing.seconds),
                "times_rntp": timing.median / own,
                "peak_gb": peaks.get(provider, 0) / 1e9,
            }
            for provider, timing in timings.items()
        },
        "facts": dict(bench.facts),
        "skipped": dict(bench.skipped),
    }


def step_work(shape: Shape, sizes: Sizes, facts: Mapping[str, float]) -> float:
    """FLOP of matrix products that rntp's step needs: unique tokens only, 2 a parameter forward and
    4 backward for those with gradients; sampling is forward alone."""
    row = 2.0 * shape.hidden * shape.vocabulary
    token = 2.0 * shape.trunk
    drawn = sizes.branches * sizes.budget
    read = sizes.docs * sizes.context
    places = sizes.docs * sizes.positions * (2 if sizes.window >= 0 else 1)  # and behind a window
    rows = drawn + (sizes.branches + places) * sizes.horizon
    sampling = (read + drawn) * (token + row)
    forward = facts["tokens in the tree"] * token + rows * row
    return (
        sampling
        + forward
        + 2 * (facts["tokens with gradients"] * token + facts["rows with gradients"] * row)
    )


def _curve(
    name: str,
    job: Job,
    curve: Mapping[str, list[int]],
    repeats: int,
    say: Progress,
) -> dict[str, list[dict[str, float]]]:
    """Seconds of rntp alone against one size at a time, beside what its FLOP predict.

    predicted: the seconds of the first point times the ratio of FLOP.
    """
    shape = Shape.of(job.model.hf)
    found: dict[str, list[dict[str, float]]] = {}
    for size, values in curve.items():
        jobs = {v: replace(job, sizes=replace(job.sizes, **{size: v})) for v in values}
        benches = {value: BENCHES[name](job) for value, job in jobs.items()}
        say(f"curve of {size}")
        timings = interleaved(
            {str(value): benches[value].providers[OURS] for value in values},
            repeats=repeats,
            say=say,
        )
        work = {v: step_work(shape, jobs[v].sizes, benches[v].facts) for v in values}
        first = timings[str(values[0])].median / work[values[0]]
        found[size] = [
            {
                size: value,
                "median_s": timings[str(value)].median,
                "predicted_s": first * work[value],
                "tflop": work[value] / 1e12,
            }
            for value in values
        ]
    return found


def _checked(name: str, bench: Bench, exact: Outcome, *, bound: float) -> dict[str, float]:
    """Differences to the reference. Raises ConfigError for one beyond the bound."""
    found = {
        provider: difference(outcome(), exact)
        for provider, outcome in bench.outcomes.items()
        if provider != bench.reference
    }
    for provider, gap in found.items():
        if not gap <= bound:
            raise ConfigError(
                f"bench {name}: {provider} and {bench.reference} do not compute the same in "
                f"float32, they differ by {gap:.2g} (bound {bound}); times of it would mean nothing"
            )
    return found


def _rounding(name: str, bench: Bench, exact: Outcome) -> dict[str, float]:
    """How far each provider's gradients are from the exact ones in the type that is timed.

    Raises ConfigError if one is twice as far as the reference.
    """
    found = {
        provider: relative_difference(outcome().tensors, exact.tensors)
        for provider, outcome in bench.outcomes.items()
    }
    for provider, gap in found.items():
        if not gap <= 2 * found[bench.reference]:
            raise ConfigError(
                f"bench {name}: in this type the gradients of {provider} are {gap:.2g} from those "
                f"in float32, and {bench.reference} is {found[bench.reference]:.2g} from them; "
                "times of it would mean nothing"
            )
    return found


def _environment(model: LanguageModel) -> dict[str, object]:
    """Without the command, which has paths of a machine; `command_line` has it without them."""
    return {k: v for k, v in environment(str(model.device)).items() if k != "command"}


def _gradients(job: Job, unshared: Unshared) -> dict[str, Callable[[], Outcome]]:
    return {
        OURS: lambda: gradients_of(job.model.hf, lambda: job.backward(job.rollouts)),
        UNSHARED: lambda: gradients_of(job.model.hf, lambda: unshared.backward(job.rollouts)),
    }


def _logp(logp: Tensor) -> Outcome:
    return Outcome(float(logp.sum()), {"logp": logp.float().cpu()})


def _tokens(job: Job) -> dict[str, float]:
    horizon, rollouts, reads = job.sizes.horizon, job.rollouts, loss_reads(job.config)
    shared = sum(tree_tokens(r, horizon, reads) for r in rollouts)
    drawn = sum(r.num_sampled for r in rollouts)
    predicted = job.sizes.branches * horizon if reads.continuation else 0
    if reads.continuation and reads.window is not None:
        predicted += job.sizes.docs * job.sizes.positions * horizon
    alone = sum(unshared_tokens(r, horizon, reads.window) for r in rollouts)
    return {
        "tokens in the tree": shared,
        "tokens unshared": alone,
        "token ratio": alone / shared,
        "tokens with gradients": sum(learning_tokens(r, horizon, reads) for r in rollouts),
        "rows with gradients": drawn + predicted,
        "sampled tokens": drawn,
    }


def _cleared(job: Job, work: Callable[[], float]) -> float:
    job.model.hf.zero_grad(set_to_none=True)
    return work()
