"""From log-probs to the loss: rewards, advantages, terms and their weights."""
