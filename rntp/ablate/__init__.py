"""A grid of runs, arms × seeds with controls among the arms → a table, a plot, a page, a JSON."""

from rntp.ablate.command import PAGE as PAGE
from rntp.ablate.command import ablate as ablate
from rntp.ablate.command import dry_run as dry_run
from rntp.ablate.command import run_one as run_one
from rntp.ablate.command import tabulate as tabulate
from rntp.ablate.experiment import Experiment as Experiment
