"""Raw web data to verified shards. Knows nothing of training.

read → extract (main content) → clean → filter → deduplicate → decontaminate → shards

`steps` are datatrove pipeline steps; `prepare` puts them together.
"""

from rntp_data_prep.config import PrepConfig
from rntp_data_prep.prepare import prepare

__all__ = ["PrepConfig", "prepare"]
