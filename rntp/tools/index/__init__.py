"""An index to search in: pieces of documents on the disk, found by their words."""
