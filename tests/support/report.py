"""How a long form tells its figures."""


def report(line: str) -> None:
    """Tell a figure; pytest shows it with ``-s``."""
    print(line)  # noqa: T201
