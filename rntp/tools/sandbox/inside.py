"""What runs in the sandbox before the code does: it gives up what is left, and shows a last line.

This file's text is the program of the sandboxed interpreter, which sees no other file of this
package; it may import nothing but the standard library.
"""

import ast
import os
import random
import resource
import sys


def give_up(memory_bytes: int, cpu_seconds: int, user: int) -> None:
    """Set limits that cannot be raised again, and leave root, whom they would not bind."""
    if os.getuid() == 0:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    for limit, most in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CPU, cpu_seconds),
        (resource.RLIMIT_NPROC, 1),  # this one: no other, and no thread
        (resource.RLIMIT_NOFILE, 16),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(limit, (most, most))


def run(source: str) -> None:
    """Run code as a session would: what the last line is worth is shown, errors are one line."""
    names: dict[str, object] = {"__name__": "__main__"}
    try:
        tree = ast.parse(source)
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "<code>", "exec"), names)
        if isinstance(last, ast.Expr):
            value = eval(compile(ast.Expression(last.value), "<code>", "eval"), names)
            if value is not None:
                print(repr(value))
    except MemoryError:
        names.clear()
        fail("out of memory", 4)
    except BaseException as error:
        said = str(error)
        fail(f"{type(error).__name__}: {said}" if said else type(error).__name__, 3)


def fail(text: str, code: int) -> None:
    """Print why, and end with a code of exit that says of which kind it is."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    given = sys.stdin.buffer.read().decode("utf-8", "replace")
    sys.stdout = open(1, "w", encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
    random.seed(0)
    give_up(int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
    run(given)
    sys.stdout.flush()
    os._exit(0)
