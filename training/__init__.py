"""How the models that ship inside the package were made."""
