# The commands people use. `just` lists them.

default:
    @just --list

# All tests.
test *args:
    uv run pytest {{args}}

# The tests that need no processes, sockets or real engine: under a minute.
quick *args:
    uv run pytest -m "not slow" {{args}}

# All tests with the coverage of every process, and its floor.
coverage:
    .ci/coverage

# The guarantees of docs/guarantees.md in their long forms, with their figures: about an hour.
guarantees *args:
    uv run pytest tests/guarantees --full -s -n 0 {{args}}

# The real clients of docs/clients.md, in an environment of their own, against a running server: six minutes.
clients *args:
    uv run --project tests/clients pytest tests/clients {{args}}

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

# Mutated images, LoRA files, JSON and HTTP against a server of its own; inputs of findings go to fuzz-findings/.
fuzz kind="all" minutes="10" *args:
    uv run python -m tools.fuzz {{kind}} --minutes {{minutes}} {{args}}

# The software bill of materials, as CycloneDX.
sbom file="sbom.json":
    uv run python -m tools.sbom {{file}}

# Known vulnerabilities of what is pinned; --strict, because a package that could not be looked up is not a clean one.
audit:
    uvx pip-audit --strict --disable-pip --require-hashes -r requirements.txt

# The tables of docs/performance.md.
bench:
    uv run python -m benchmarks.startup
    uv run python -m benchmarks.health_under_load
    uv run python -m benchmarks.hostile_images
    uv run python -m benchmarks.large_bodies
    uv run python -m benchmarks.floods
    uv run python -m benchmarks.long_queue
    uv run python -m benchmarks.quantized_load
    uv run python -m benchmarks.low_ram
    uv run python -m benchmarks.model_switches

# What the documents have from the code: errors, models, files.
docs:
    uv run python -m tools.error_table
    uv run python -m tools.model_table
    uv run python -m tools.file_index
