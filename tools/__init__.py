"""Commands for those who work on this project: they write tables of the documents, and the pins."""
