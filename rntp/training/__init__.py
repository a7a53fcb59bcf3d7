"""What the trainer does around the loss: updates, statistics, checks, saves, recovery."""
