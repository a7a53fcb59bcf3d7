"""The four benches: what they compare, what they check, what they report."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from rntp_kernels import linear_logprob_top1
from torch import Tensor

from rntp.bench import peers
from rntp.bench.agreement import gradients_of, relative_difference
from rntp.bench.clock import Progress, Timing, interleaved, load_average, matmul_rate
from rntp.bench.job import Job
from rntp.bench.sizes import NAMES, Sizes
from rntp.bench.unshared import Unshared
from rntp.errors import ConfigError
from rntp.estimate import Shape
from rntp.memory import keep_freed_memory
from rntp.model import LanguageModel
from rntp.provenance import environment
from rntp.tree import tree_tokens, unshared_tokens
from rntp.types import Rollout

OURS = "rntp"
UNSHARED = "unshared loop (transformers)"


@dataclass(frozen=True)
class Bench:
    """What a bench found before its clock started. reference: the provider that speed-ups divide.

    providers: by name. agreement: relative differences to the reference. facts: counts of work.
    skipped: peers that did not run, with the reason.
    """

    providers: Mapping[str, Callable[[], object]]
    reference: str
    agreement: Mapping[str, float]
    facts: Mapping[str, float]
    skipped: Mapping[str, str]


def head(job: Job) -> Bench:
    """Forward and backward of log-prob and entropy at the rows that the step has."""
    sizes, model = job.sizes, job.model
    rows = sizes.branches * (sizes.budget + sizes.horizon)
    weight = model.head.detach().clone().requires_grad_()
    vocabulary, width = weight.shape
    generator = torch.Generator().manual_seed(0)
    targets = torch.randint(vocabulary, (rows,), generator=generator).to(model.device)
    # Hidden states that lean to their targets: flat logits would flatter gradient filters.
    noise = torch.randn(rows, width, generator=generator).to(weight)
    lean = weight.detach()[targets]
    scale = 3.0 / lean.float().square().sum(1, keepdim=True).sqrt().clamp_min(1e-6)
    hidden = (lean * (scale * scale) + 0.5 * noise * lean.float().std()).to(weight.dtype)
    hidden = hidden.detach().requires_grad_()
    signs = torch.randn(rows, generator=generator).to(model.device)

    def of(implementation: Any) -> Callable[[], float]:
        def work() -> float:
            hidden.grad = weight.grad = None
            logp, entropy, _ = linear_logprob_top1(
                hidden, weight, targets, implementation=implementation
            )
            total = (signs * logp + 0.01 * entropy).sum()
            total.backward()
            return float(total.detach())

        return work

    def left(work: Callable[[], object]) -> dict[str, Tensor]:
        work()
        assert hidden.grad is not None
        assert weight.grad is not None
        return {"hidden": hidden.grad.float(), "weight": weight.grad.float()}

    providers = {OURS: of("auto"), "plain autograd": of("reference")}
    found, skipped = peers.heads(hidden, weight, targets, signs)
    reference = left(providers["plain autograd"])
    agreement = {OURS: relative_difference(left(providers[OURS]), reference)}
    facts: dict[str, float] = {"rows": rows, "hidden": width, "vocabulary": vocabulary}
    facts["gigabytes of logits not kept"] = 4e-9 * rows * vocabulary
    return Bench(providers | found, "plain autograd", agreement, facts, skipped)


def tree(job: Job) -> Bench:
    """Forward, rewards and backward on the same thoughts, shared and unshared."""
    rollouts = job.sample()
    unshared = Unshared(job)
    providers = {
        OURS: lambda: _cleared(job, lambda: job.backward(rollouts)),
        UNSHARED: lambda: _cleared(job, lambda: unshared.backward(rollouts)),
    }
    agreement = {OURS: _agreement(job, unshared, rollouts)}
    return Bench(providers, UNSHARED, agreement, _tokens(job, rollouts), {})


def rollout(job: Job) -> Bench:
    """Sampling: every branch of a page at once against one copy of its keys, or `generate`."""
    unshared = Unshared(job)
    sizes = job.sizes
    tokens = sizes.branches * sizes.budget
    facts = {"branches": sizes.branches, "sampled tokens": tokens}
    return Bench({OURS: job.sample, UNSHARED: unshared.sample}, UNSHARED, {}, facts, {})


def step(job: Job) -> Bench:
    """Sampling, forward, rewards, advantages, loss and backward."""
    rollouts = job.sample()
    unshared = Unshared(job)

    def ours() -> None:
        _cleared(job, lambda: job.backward(job.sample()))

    def usual() -> None:
        # Its own thoughts cost as much as ours; training on ours keeps the sizes equal.
        unshared.sample()
        _cleared(job, lambda: unshared.backward(rollouts))

    agreement = {OURS: _agreement(job, unshared, rollouts)}
    providers = {OURS: ours, UNSHARED: usual}
    return Bench(providers, UNSHARED, agreement, _tokens(job, rollouts), {})


BENCHES: dict[str, Callable[[Job], Bench]] = dict(
    zip(NAMES, (head, tree, rollout, step), strict=True)
)


def run(
    name: str,
    model: LanguageModel,
    sizes: Sizes,
    *,
    repeats: int = 3,
    curve: Mapping[str, list[int]] | None = None,
    say: Progress = lambda text: None,
) -> dict[str, Any]:
    """One bench as a JSON-able dict; see `report` for its shape.

    curve: also rntp alone at other values of one size each, {"thoughts": [2, 4, 8], …}.
    Raises ConfigError if a provider computes something else than the reference.
    """
    keep_freed_memory()
    job = Job(model, sizes)
    load = load_average()
    bench = BENCHES[name](job)
    bound = 1e-3 if model.head.dtype == torch.float32 else 0.1
    for provider, gap in bench.agreement.items():
        if not gap <= bound:
            raise ConfigError(
                f"bench {name}: {provider} and {bench.reference} do not compute the same, their "
                f"gradients differ by {gap:.2g} (bound {bound}); times of it would mean nothing"
            )
    timings = interleaved(bench.providers, repeats=repeats, say=say)
    rate = matmul_rate(model.head.dtype, model.device)
    result = report(name, bench, timings) | {
        "sizes": sizes.as_dict(),
        "model": model.spec,
        "dtype": str(model.head.dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "load_average": {"before": load, "after": load_average()},
        "matmul_gflops": rate / 1e9,
        "environment": environment(str(model.device)),
    }
    if name == "step":
        shape = Shape.of(model.hf)
        done = step_work(shape, sizes, bench.facts)
        result["share_of_matmul_rate"] = done / timings[OURS].median / rate
    if curve:
        result["curve"] = _curve(name, model, sizes, curve, repeats, say)
    return result


def report(name: str, bench: Bench, timings: Mapping[str, Timing]) -> dict[str, Any]:
    """Medians in seconds, spreads, and how many times slower than rntp each provider is."""
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
            }
            for provider, timing in timings.items()
        },
        "agreement": dict(bench.agreement),
        "facts": dict(bench.facts),
        "skipped": dict(bench.skipped),
    }


def step_work(shape: Shape, sizes: Sizes, facts: Mapping[str, float]) -> float:
    """FLOP of matrix products that rntp's step needs: unique tokens only, 2 a parameter forward
    and 4 backward; sampling is forward alone."""
    head = 2.0 * shape.hidden * shape.vocabulary
    trunk = 2.0 * shape.trunk
    sampled = sizes.branches * sizes.budget
    read = sizes.docs * sizes.context
    rows = sizes.branches * (sizes.budget + sizes.horizon) + (
        sizes.docs * sizes.positions * sizes.horizon
    )
    sampling = (read + sampled) * (trunk + head)
    return sampling + 3 * (facts["tokens in the tree"] * trunk + rows * head)


def _curve(
    name: str,
    model: LanguageModel,
    sizes: Sizes,
    curve: Mapping[str, list[int]],
    repeats: int,
    say: Progress,
) -> dict[str, list[dict[str, float]]]:
    """Seconds of rntp alone against one size at a time, beside what its FLOP predict.

    predicted: the seconds of the first point times the ratio of FLOP.
    """
    shape = Shape.of(model.hf)
    found: dict[str, list[dict[str, float]]] = {}
    for size, values in curve.items():
        jobs = {value: Job(model, replace(sizes, **{size: value})) for value in values}
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


def _agreement(job: Job, unshared: Unshared, rollouts: list[Rollout]) -> float:
    own_loss, own = gradients_of(job.model.hf, lambda: job.backward(rollouts))
    other_loss, other = gradients_of(job.model.hf, lambda: unshared.backward(rollouts))
    gap = abs(own_loss - other_loss) / max(abs(other_loss), 1e-9)
    return max(relative_difference(own, other), gap)


def _tokens(job: Job, rollouts: list[Rollout]) -> dict[str, float]:
    horizon = job.sizes.horizon
    shared = sum(tree_tokens(r, horizon) for r in rollouts)
    alone = sum(unshared_tokens(r, horizon) for r in rollouts)
    return {
        "tokens in the tree": shared,
        "tokens unshared": alone,
        "token ratio": alone / shared,
        "sampled tokens": sum(r.num_sampled for r in rollouts),
    }


def _cleared(job: Job, work: Callable[[], float]) -> float:
    job.model.hf.zero_grad(set_to_none=True)
    return work()
