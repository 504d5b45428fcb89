"""The package's version, also in an uninstalled checkout."""

from importlib.metadata import PackageNotFoundError, version


def package_version() -> str:
    """Return the version as in pyproject.toml."""
    try:
        return version("mflux-api")
    except PackageNotFoundError:
        return "2.0.0"
