"""What holds processes together and keeps them alive: ranks, signals, watchdog, files."""
