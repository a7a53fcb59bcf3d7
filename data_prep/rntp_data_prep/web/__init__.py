"""Pages from sites: addresses, what may be asked for, one request at a time, links.

Everything that a page says is hostile: an address is used only where the user's list allows it,
before a request and again at every redirect.
"""
