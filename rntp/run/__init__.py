"""What a run leaves behind: folder, checkpoints, records, mirrors of its metrics, export."""
