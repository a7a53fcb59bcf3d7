"""The program that runs vLLM, in an environment of its own: it answers frames on one socket.

It is started by its path and imports nothing of rntp, so that vLLM may pin what it likes. vLLM
fixes the number of threads of its process, which is why it never runs in the trainer's. Everything
happens in this one process: when it is killed nothing of it stays behind.

A frame is `_HEAD` (magic, bytes of the JSON, bytes of the rest), a JSON object with `kind`, and its
arrays one behind the other. Whoever asks sends a frame and reads one, which is the answer or an
`error`.
"""

import argparse
import json
import os
import shutil
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

_HEAD = struct.Struct("!4sIQ")
_MAGIC = b"rvl1"
FOLDER = "rntp-vllm-"  # folders of weights begin like this
_MOST_JSON, _MOST_BYTES = 1 << 20, 1 << 33


class ClosedError(ConnectionError):
    """The other side has gone."""


@dataclass(frozen=True)
class Frame:
    """What one side tells the other. facts: of JSON's types. arrays: flat, by name."""

    kind: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)


def send(
    connection: socket.socket, frame: Frame, waiting: Callable[[], None] | None = None
) -> None:
    """Write a frame. waiting: as in `receive`. Raises ClosedError."""
    bodies = [np.ascontiguousarray(a) for a in frame.arrays.values()]
    table = [[n, b.dtype.str, b.size] for n, b in zip(frame.arrays, bodies, strict=True)]
    head = json.dumps({"kind": frame.kind, "facts": dict(frame.facts), "arrays": table}).encode()
    size = sum(body.nbytes for body in bodies)
    whole = b"".join([_HEAD.pack(_MAGIC, len(head), size), head, *(b.tobytes() for b in bodies)])
    left = memoryview(whole)
    while left:
        try:
            left = left[connection.send(left) :]
        except TimeoutError:
            if waiting is None:
                raise
            waiting()
        except OSError as error:
            raise ClosedError("the other side has gone") from error


def receive(connection: socket.socket, waiting: Callable[[], None] | None = None) -> Frame:
    """Read a frame. waiting: called whenever the connection's time-out has passed; without one that
    raises TimeoutError. Raises ClosedError, and ValueError for what is no frame."""
    magic, length, size = _HEAD.unpack(_exactly(connection, _HEAD.size, waiting))
    if magic != _MAGIC or length > _MOST_JSON or size > _MOST_BYTES:
        raise ValueError("this is no frame of the sampler's protocol")
    head = json.loads(_exactly(connection, length, waiting))
    body, first, arrays = _exactly(connection, size, waiting), 0, {}
    for name, dtype, count in head["arrays"]:
        arrays[name] = np.frombuffer(body, np.dtype(dtype), count, first)
        first += arrays[name].nbytes
    if first != size:
        raise ValueError(f"a frame of {size} bytes names {first}")
    return Frame(head["kind"], head["facts"], arrays)


def _exactly(connection: socket.socket, size: int, waiting: Callable[[], None] | None) -> bytes:
    found = bytearray()
    while len(found) < size:
        try:
            more = connection.recv(min(size - len(found), 1 << 20))
        except TimeoutError:
            if waiting is None:
                raise
            waiting()
            continue
        except OSError as error:
            raise ClosedError("the other side has gone") from error
        if not more:
            raise ClosedError("the other side has gone")
        found += more
    return bytes(found)


def rows(flat: np.ndarray, lengths: np.ndarray) -> list[np.ndarray]:
    """Cut a flat array into rows of these lengths."""
    ends: np.ndarray = np.cumsum(lengths)
    return np.split(flat, ends[:-1]) if len(lengths) else []


class Served:
    """vLLM behind the protocol: one method a kind of frame."""

    def __init__(self) -> None:
        self._llm: Any = None
        self._folder = ""

    def tidy(self) -> None:
        """Remove the weights that the parent has not removed: it was killed."""
        if os.path.basename(self._folder).startswith(FOLDER):
            shutil.rmtree(self._folder, ignore_errors=True)

    def answer(self, frame: Frame) -> Frame:
        """Do what a frame asks. Raises whatever vLLM raises."""
        kinds = {"open": self._open, "load": self._load, "sample": self._sample}
        return {**kinds, "score": self._score}[frame.kind](frame)

    def _open(self, frame: Frame) -> Frame:
        """Load the model of a folder. facts: as `vllm.LLM` takes them."""
        import torch
        import vllm

        begun, self._folder = time.monotonic(), frame.facts["model"]
        self._llm = vllm.LLM(
            skip_tokenizer_init=True,
            load_format="safetensors",
            # What is compiled may hold on to weights that a reload has replaced.
            enforce_eager=True,
            enable_prefix_caching=True,
            # Of the distribution that is drawn from; the default is that at temperature 1.
            logprobs_mode="processed_logprobs",
            # A model's own file may bring top-k, top-p and penalties.
            generation_config="vllm",
            # The trainer's logits are float32, whatever the model's type.
            hf_overrides={"head_dtype": "float32"},
            disable_log_stats=True,
            **frame.facts,
        )
        return Frame(
            "opened",
            {
                "vllm": vllm.__version__,
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "seconds": time.monotonic() - begun,
            },
        )

    def _load(self, frame: Frame) -> Frame:
        """Take the weights of a folder, in place."""
        begun, self._folder = time.monotonic(), frame.facts["folder"]
        self._llm.collective_rpc(
            "reload_weights",
            kwargs={"weights_path": self._folder, "is_checkpoint_format": True},
        )
        return Frame("loaded", {"seconds": time.monotonic() - begun})

    def _sample(self, frame: Frame) -> Frame:
        """Draw a row for every seed, behind the prompt that it names."""
        from vllm import SamplingParams

        facts, arrays = frame.facts, frame.arrays
        prompts = self._prompts(frame)
        asked = [
            SamplingParams(
                n=1,
                seed=int(seed),
                temperature=facts["temperature"],
                top_p=1.0,
                top_k=0,
                min_p=0.0,
                max_tokens=int(budget),
                stop_token_ids=facts["stops"],
                ignore_eos=True,
                logprobs=0,
                detokenize=False,
            )
            for seed, budget in zip(arrays["seed"], arrays["budget"], strict=True)
        ]
        found = self._llm.generate([prompts[n] for n in arrays["of"]], asked, use_tqdm=False)
        outputs = [one.outputs[0] for one in found]
        ids = [np.asarray(out.token_ids, dtype=np.int64) for out in outputs]
        logprobs = [
            [
                step[int(token)].logprob
                for step, token in zip(out.logprobs, out.token_ids, strict=True)
            ]
            for out in outputs
        ]
        return Frame(
            "sampled",
            {},
            {
                "length": np.asarray([len(row) for row in ids], dtype=np.int64),
                "ids": np.concatenate(ids),
                "logprobs": np.asarray(list(chain.from_iterable(logprobs)), dtype=np.float32),
            },
        )

    def _score(self, frame: Frame) -> Frame:
        """Log-probs of the prompts' own tokens, from the second on."""
        from vllm import SamplingParams

        asked = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
        found = self._llm.generate(self._prompts(frame), asked, use_tqdm=False)
        logprobs = [
            step[token].logprob
            for one in found
            for token, step in zip(one.prompt_token_ids[1:], one.prompt_logprobs[1:], strict=True)
        ]
        return Frame("scored", {}, {"logprobs": np.asarray(logprobs, dtype=np.float32)})

    def _prompts(self, frame: Frame) -> list[Any]:
        """Token ids of each prompt. The salt keeps what earlier weights have cached apart."""
        from vllm.inputs import TokensPrompt

        return [
            TokensPrompt(prompt_token_ids=row.tolist(), cache_salt=frame.facts["salt"])
            for row in rows(frame.arrays["ids"], frame.arrays["length"])
        ]


def serve(connection: socket.socket, answer: Callable[[Frame], Frame]) -> None:
    """Answer frames until the other side has gone. What fails is told as an `error`."""
    while True:
        try:
            frame = receive(connection)
        except ClosedError:
            return
        try:
            found = answer(frame)
        except Exception as error:
            traceback.print_exc()
            told = f"{type(error).__name__}: {str(error).strip()}"
            found = Frame("error", {"message": told, "asked": frame.kind})
        try:
            send(connection, found)
        except ClosedError:
            return


def main() -> None:
    """Serve the socket that the parent has left open under a number."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket", type=int, required=True)
    settings = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # else the engine would outlive a kill of this one
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "HF_HUB_OFFLINE": "1",
    }
    for name, value in settings.items():
        os.environ.setdefault(name, value)
    served = Served()
    serve(socket.socket(fileno=parser.parse_args().socket), served.answer)
    served.tidy()


if __name__ == "__main__":
    # Names in this folder are rntp's; `import vllm` has to find the package.
    sys.path = [entry for entry in sys.path if entry != os.path.dirname(os.path.abspath(__file__))]
    main()
