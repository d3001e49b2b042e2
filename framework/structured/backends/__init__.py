"""The libraries that compile grammars, behind one protocol. Adding one is a file and an entry in ``table``."""
