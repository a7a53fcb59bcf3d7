"""What a store does for those who want to meet in it, tried without leaving anything there."""

import uuid
from pathlib import Path

from rntp.data.storage import Location
from rntp.errors import ConfigError
from rntp.rollout.store.files import UrlFiles, open_files
from rntp.rollout.store.sealed import KEY_IN, key_of_environment


def probe_store(where: Location) -> list[str]:
    """Tell what is wrong with a store, each with its remedy. Raises ConfigError for an address that
    cannot be one."""
    if isinstance(where, Path):
        # The run makes it; what can be tried is the first folder above it that is there.
        here = where.absolute()
        while not here.exists():
            here = here.parent
        where = here
    files, name = open_files(where), f"probe-{uuid.uuid4().hex}"
    found = []
    try:
        if not files.put_new(name, b"1") or files.put_new(name, b"2") or files.get(name) != b"1":
            found.append(
                f"{where} does not keep what is written first; take another rollout.samplers.store"
            )
        files.remove(name)
        if isinstance(files, UrlFiles) and not files.conditional:
            found.append(
                f"{where} knows no conditional writes: two samplers may do the same part now and "
                "then, which costs time alone"
            )
    except OSError as error:
        found.append(
            f"rollout.samplers.store {where} does not answer ({error}); check address, keys "
            "(AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, …) and rights"
        )
    if isinstance(files, UrlFiles) and not key_of_environment():
        found.append(
            f"${KEY_IN} is not set: whoever can write to {where} can bring rollouts; set it to one "
            "secret for trainer and samplers"
        )
    return found


def check_store(where: Location | None) -> None:
    """Raise ConfigError with all that is wrong with a store; nothing is where there is none."""
    if where is not None and (found := probe_store(where)):
        raise ConfigError("; ".join(found))
