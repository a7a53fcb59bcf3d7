"""A judge behind an OpenAI-compatible endpoint: one question, one reply, whatever comes of it."""

import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rntp.errors import ConfigError
from rntp.judges.prompts import Message, Style
from rntp.judges.verdict import read_reply
from rntp.types import Verdict

# Tokens of a reply, at most.
_WORDS: Mapping[Style, int] = {"word": 1, "reason": 400}
# A reply of more bytes than that is no reply.
_MOST_BYTES = 1 << 20
# Seconds between two tries: doubled each time, with chance.
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0


class Endpoint:
    """Asks one model.

    url: of the API, up to `/v1`. key: name of the environment variable that holds the API's key,
    None for servers without one. seconds: a try may take, and all tries together at most
    `seconds · tries`. Raises ConfigError where a variable or a package is missing.
    """

    def __init__(
        self, url: str, model: str, key: str | None, style: Style, *, seconds: float, tries: int
    ) -> None:
        try:
            import httpx
        except ImportError as error:
            raise ConfigError(
                "reward.judges needs the packages httpx and tenacity; install the extra `judges` "
                "(pip install 'rntp[judges]')"
            ) from error
        if key is not None and not os.environ.get(key):
            raise ConfigError(
                f"reward.judges: {url} wants a key from the environment variable {key}, and it is "
                "not set; export it, or take `key` away"
            )
        headers = {} if key is None else {"Authorization": f"Bearer {os.environ[key]}"}
        self.url, self.model, self.style = url.rstrip("/"), model, style
        self._seconds, self._tries = seconds, tries
        self._client = httpx.Client(headers=headers, timeout=seconds)

    @property
    def identity(self) -> list[object]:
        """What decides about a verdict besides the question, wherever the server stands."""
        return [self.model, self.style, _WORDS[self.style]]

    def ask(self, messages: Sequence[Message]) -> Verdict:
        """Put a question; after the last try whatever failed last is the reply."""
        from tenacity import (
            Retrying,
            retry_if_result,
            stop_after_attempt,
            stop_after_delay,
            wait_random_exponential,
        )

        again = Retrying(
            retry=retry_if_result(_may_change),
            stop=stop_after_attempt(self._tries) | stop_after_delay(self._seconds * self._tries),
            wait=wait_random_exponential(_FIRST_WAIT_S, _LONGEST_WAIT_S),
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )
        found: Verdict = again(self._ask_once, messages)
        return found

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask_once(self, messages: Sequence[Message]) -> Verdict:
        import httpx

        end = time.monotonic() + self._seconds
        body = bytearray()
        address = f"{self.url}/chat/completions"
        try:
            with self._client.stream("POST", address, json=self._request(messages)) as response:
                for part in response.iter_bytes():
                    body += part
                    if len(body) > _MOST_BYTES:
                        return Verdict(None, "too_long")
                    if time.monotonic() > end:
                        return Verdict(None, "out_of_time")
        except httpx.TimeoutException:
            return Verdict(None, "out_of_time")
        except httpx.RemoteProtocolError:  # it hung up in the middle
            return Verdict(None, "unreadable")
        except httpx.HTTPError:
            return Verdict(None, "unreachable")
        if response.status_code != httpx.codes.OK:
            return Verdict(None, _kind(response.status_code))
        return read_reply(bytes(body), self.model, self.style)

    def _request(self, messages: Sequence[Message]) -> dict[str, Any]:
        # The same question has the same reply as far as the server can: no chance, one seed.
        request: dict[str, Any] = {
            "model": self.model,
            "messages": list(messages),
            "temperature": 0,
            "seed": 0,
            "max_tokens": _WORDS[self.style],
        }
        if self.style == "word":
            request |= {"logprobs": True, "top_logprobs": 20}
        return request


def _kind(status: int) -> str:
    if status == 429:
        return "rate_limited"
    return "server" if status >= 500 else "refused"


def _may_change(reply: Verdict) -> bool:
    """Whether another try may help: not where the server has understood and will say the same."""
    return reply.yes is None and reply.failure not in ("refused", "wrong_model", "unclear")
