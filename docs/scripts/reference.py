"""Name what makes the reference pages, from the program itself."""

from collections.abc import Callable

from reference_code import metrics, modules, placement_policies, reward_schemes
from reference_commands import commands
from reference_config import (
    config_warnings,
    configuration,
    free_fields,
    frontier,
    preparation,
    rules,
    scheme_parameters,
)

MAKERS: dict[str, Callable[[], str]] = {
    maker.__name__: maker
    for maker in (
        *(commands, config_warnings, configuration, free_fields, frontier, metrics, modules),
        *(placement_policies, preparation, reward_schemes, rules, scheme_parameters),
    )
}
