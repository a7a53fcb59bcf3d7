"""A stand-in for vLLM behind the real protocol: transformers' own model, a thread or a process."""

import socket
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from rntp.rollout.vllm.child import Frame, rows, serve
from rntp.rollout.vllm.process import Child


class Scripted:
    """Answers as `rntp.rollout.vllm.child.Served` does. frames: all that it was asked."""

    def __init__(self) -> None:
        self.frames: list[Frame] = []

    def answer(self, frame: Frame) -> Frame:
        self.frames.append(frame)
        return getattr(self, f"_{frame.kind}")(frame)

    def of(self, kind: str) -> list[Frame]:
        return [frame for frame in self.frames if frame.kind == kind]

    def _open(self, frame: Frame) -> Frame:
        self._take(frame.facts["model"])
        return Frame("opened", {"vllm": "0.32.0", "torch": torch.__version__})

    def _load(self, frame: Frame) -> Frame:
        self._take(frame.facts["folder"])
        return Frame("loaded", {"seconds": 0.0})

    def _take(self, folder: str) -> None:
        self.hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def _score(self, frame: Frame) -> Frame:
        found = [self._logp(ids)[:-1].gather(1, ids[1:, None]) for ids in self._prompts(frame)]
        return Frame("scored", {}, {"logprobs": torch.cat(found).flatten().numpy()})

    def _sample(self, frame: Frame) -> Frame:
        prompts, drawn = self._prompts(frame), []
        arrays = frame.arrays
        for of, seed, budget in zip(arrays["of"], arrays["seed"], arrays["budget"], strict=True):
            drawn.append(self._draw(prompts[int(of)], int(seed), int(budget), frame.facts))
        return Frame(
            "sampled",
            {},
            {
                "length": np.asarray([len(row) for row in drawn]),
                "ids": np.asarray([token for row in drawn for token, _ in row]),
                "logprobs": np.asarray([p for row in drawn for _, p in row], dtype=np.float32),
            },
        )

    def _draw(
        self, ids: torch.Tensor, seed: int, budget: int, facts: dict
    ) -> list[tuple[int, float]]:
        noise, drawn = torch.Generator().manual_seed(seed), []
        while len(drawn) < budget:
            logp = (self._logp(ids)[-1] / facts["temperature"]).log_softmax(-1)
            token = self._choose(logp, noise)
            drawn.append((token, float(logp[token])))
            ids = torch.cat([ids, torch.tensor([token])])
            if token in facts["stops"]:
                break
        return drawn

    def _choose(self, logp: torch.Tensor, noise: torch.Generator) -> int:
        return int(torch.multinomial(logp.exp(), 1, generator=noise))

    def _prompts(self, frame: Frame) -> list[torch.Tensor]:
        found = rows(frame.arrays["ids"], frame.arrays["length"])
        return [torch.from_numpy(row.astype(np.int64)) for row in found]

    @torch.no_grad()
    def _logp(self, ids: torch.Tensor) -> torch.Tensor:
        return self.hf(ids[None], use_cache=False).logits[0].float().log_softmax(-1)


class ThreadChild(Child):
    """A child that is a thread of this process. delay: called before every answer."""

    def __init__(self, answer: Callable[[Frame], Frame], log: Path) -> None:
        self.log, self._patience_s, self.ended = log, 0.0, False
        self._connection, self._other = socket.socketpair()
        self._connection.settimeout(0.02)
        threading.Thread(target=serve, args=(self._other, answer), daemon=True).start()

    def close(self) -> None:
        self._connection.close()
        self.ended = True


def starting(scripted: Scripted) -> Callable[[Path], Child]:
    """What `VllmEngine` starts in place of vLLM."""
    return lambda log: ThreadChild(scripted.answer, log)
