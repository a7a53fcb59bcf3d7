"""Commands of the program `rntp`, a file each."""
