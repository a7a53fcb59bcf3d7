"""`python -m rntp`."""

from rntp.cli import main

main()
