"""The configuration: strict, few fields, each with its unit, its meaning and its remedy.

One YAML file, one section a concern; `--set section.field=value` overrides. An unknown key is an
error that names the nearest field. The resolved config is written into every run folder.
"""

from rntp.config.optim import Optim as Optim
from rntp.config.schema import Config as Config
from rntp.config.sections import Pages as Pages
from rntp.config.sections import Section as Section
from rntp.config.sections import scheme_label as scheme_label
