# The commands people use. `just` lists them.

default:
    @just --list

# All tests.
test *args:
    uv run pytest {{args}}

# Style and import directions.
lint:
    uv run ruff format --check .
    uv run ruff check .
    uv run lint-imports

# Static types.
type:
    uv run mypy

# Rewrite the files in the project's style.
format:
    uv run ruff format .
    uv run ruff check --fix .

# Write the dependency pins anew.
pin:
    uv lock --upgrade
    uv run python -m tools.pin
