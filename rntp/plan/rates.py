"""What one of each amount costs, in seconds: fitted to measured steps, or by a data sheet."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from rntp.errors import ConfigError
from rntp.plan.cluster import Cluster
from rntp.plan.work import PHASES, Amounts

Seconds = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Rates:
    """costs: seconds of one of an amount, by phase and amount. source: where they come from.
    error: median relative error of a phase against the steps that it was fitted to. process_bytes:
    of a process that has loaded all and done nothing, where it was measured. kind: of the device,
    cpu or cuda."""

    costs: Mapping[str, Mapping[str, float]]
    source: str
    error: Mapping[str, float] | None = None
    process_bytes: float | None = None
    kind: str = "cuda"

    def seconds(self, amounts: Amounts) -> Seconds:
        """Seconds by phase and amount. An amount of which nothing is known costs nothing."""
        return {
            phase: {name: n * self.costs.get(phase, {}).get(name, 0.0) for name, n in found.items()}
            for phase, found in amounts.items()
        }

    def total(self, amounts: Amounts) -> float:
        """Seconds of all phases."""
        return sum(sum(found.values()) for found in self.seconds(amounts).values())

    def as_dict(self) -> dict[str, object]:
        """Return it for JSON."""
        return asdict(self)

    @classmethod
    def load(cls, path: Path) -> "Rates":
        """Read what `rntp plan --calibrate` wrote. Raises ConfigError for anything else."""
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            return cls(**raw)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{path} is no calibration ({error}); make one with `rntp plan CONFIG --calibrate "
                f"--rates {path}`"
            ) from error


def fit(points: Sequence[tuple[Amounts, Mapping[str, float]]], source: str, kind: str) -> Rates:
    """Fit costs to steps: amounts, and the seconds of each phase that were measured.

    Each phase by itself, by least squares of relative errors with no cost below zero: small steps
    count as much as large ones. kind: of the device. Raises ConfigError without points.
    """
    if not points:
        raise ConfigError("no step was measured, so there is nothing to fit costs to")
    costs: dict[str, dict[str, float]] = {}
    error: dict[str, float] = {}
    for phase in PHASES:
        names = list(points[0][0][phase])
        seconds = np.array([max(measured[phase], 1e-9) for _, measured in points])
        table = np.array([[amounts[phase][n] for n in names] for amounts, _ in points])
        relative = table / seconds[:, None]
        found = non_negative(relative, np.ones(len(points)))
        costs[phase] = dict(zip(names, map(float, found), strict=True))
        error[phase] = float(np.median(np.abs(relative @ found - 1)))
    return Rates(costs, source, error, kind=kind)


def non_negative(table: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Find x ≥ 0 that minimises |table x − target|²: Lawson and Hanson's active sets (1974).

    table: [rows, columns], target: [rows]. Columns of zeros get 0.
    """
    scale = np.linalg.norm(table, axis=0)
    used = scale > 0
    a = table[:, used] / scale[used]
    x = np.zeros(a.shape[1])
    free = np.zeros(a.shape[1], dtype=bool)
    for _ in range(10 * a.shape[1] + 10):
        slope = a.T @ (target - a @ x)
        slope[free] = -np.inf
        if not len(slope) or slope.max() <= 1e-10:
            break
        free[int(slope.argmax())] = True
        while True:
            guess = np.zeros_like(x)
            guess[free] = np.linalg.lstsq(a[:, free], target, rcond=None)[0]
            below = free & (guess <= 0)
            if not below.any():
                x = guess
                break
            step = (x[below] / (x[below] - guess[below])).min()
            x = x + step * (guess - x)
            free &= x > 1e-14
            x[~free] = 0.0
    found = np.zeros(table.shape[1])
    found[used] = x / scale[used]
    return found


def assumed(cluster: Cluster) -> Rates:
    """Take costs from the data sheet of a cluster, and the shares of it that are assumed."""
    share, device, links = cluster.assumed, cluster.device, cluster.links
    flop = device.tflops * 1e12
    memory = 1 / (device.memory_gb_s * 1e9 * share.memory)
    link = 1 / (ring_gb_s(cluster) * 1e9 * share.link)
    # A ring passes the border of each centre once a round; the others are near.
    far = cluster.centres * links.between_centres_ms * 1e-3 if cluster.centres > 1 else 0.0
    hop = links.hop_us * 1e-6 + far / max(cluster.devices - 1, 1)
    launch = share.launch_us * 1e-6
    return Rates(
        {
            "rollout": {
                "once": 10 * launch,
                "decode_launches": share.decode_launch_us * 1e-6,
                "decode_bytes": memory,
                "decode_flop": 1 / (flop * share.decoding),
                "prefill_flop": 1 / (flop * share.layers),
                "thoughts": launch / 10,
                "hops": hop,
            },
            "train": {
                "once": 10 * launch,
                "launches": launch,
                "layers_flop": 1 / (flop * share.layers),
                "head_flop": 1 / (flop * share.head),
                "attention_flop": 1 / (flop * share.attention),
                "activation_bytes": memory,
                "reduced_bytes": link,
                "hops": hop,
            },
            "update": {
                "launches": launch / 10,
                "moved_bytes": memory,
                "gathered_bytes": link,
                "hops": hop,
            },
            "rest": {
                "once": 10 * launch,
                "thoughts": launch,
                "exchanged_bytes": 1e-9,  # gloo, over one socket
                "hops": hop,
            },
        },
        f"assumed from the data sheet of {cluster.name}",
    )


def ring_gb_s(cluster: Cluster) -> float:
    """Bandwidth of the narrowest place that a ring through all devices passes, GB/s each way: of
    a device to the next, of all devices of a node out of it, of a centre out of it."""
    found = [cluster.links.inside_gb_s]
    if cluster.nodes_per_centre > 1 or cluster.centres > 1:
        found.append(cluster.devices_per_node * cluster.links.between_gb_s)
    if cluster.centres > 1:
        found.append(cluster.links.between_centres_gb_s)
    return min(found)
