"""The best thoughts of a run as a data set, or as shards that a later run trains on."""

from rntp.traces.command import export_traces as export_traces
