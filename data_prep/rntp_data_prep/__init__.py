"""Raw web archives to verified shards. Knows nothing of training.

read (WARC) → extract (main content) → clean → exact dedupe → eligibility → shards
"""

from rntp_data_prep.config import PrepConfig
from rntp_data_prep.prepare import prepare

__all__ = ["PrepConfig", "prepare"]
