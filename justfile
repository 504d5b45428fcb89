# The commands people use. `just` lists them.

run := "uv run --group dev"

default:
    @just --list

# All tests.
test *args:
    {{run}} pytest {{args}}

# The tests that need no processes, sockets or real engine: under a minute.
quick *args:
    {{run}} pytest -m "not slow" {{args}}

# All tests with the coverage of every process, and its floor.
coverage:
    .ci/coverage

# The guarantees of docs/guarantees.md in their long forms, with their figures: about an hour.
guarantees *args:
    {{run}} pytest tests/guarantees --full -s -n 0 {{args}}

# The real clients of docs/clients.md, in an environment of their own, against a running server: six minutes.
clients *args:
    uv run --project tests/clients pytest tests/clients {{args}}

# Style and import directions.
lint:
    {{run}} ruff format --check .
    {{run}} ruff check .
    {{run}} lint-imports

# Static types.
type:
    {{run}} mypy

# Rewrite the files in the project's style.
format:
    {{run}} ruff format .
    {{run}} ruff check --fix .

# Write the dependency pins anew.
pin:
    uv lock --upgrade
    {{run}} python -m tools.pin

# Mutated images, LoRA files, JSON and HTTP against a server of its own; inputs of findings go to fuzz-findings/.
fuzz kind="all" minutes="10" *args:
    {{run}} python -m tools.fuzz {{kind}} --minutes {{minutes}} {{args}}

# The software bill of materials, as CycloneDX.
sbom file="sbom.json":
    {{run}} python -m tools.sbom {{file}}

# Known vulnerabilities of what is pinned; --strict, because a package that could not be looked up is not a clean one.
audit:
    uvx pip-audit --strict --disable-pip --require-hashes -r requirements.txt

# The tables of docs/performance.md.
bench:
    {{run}} python -m benchmarks.startup
    {{run}} python -m benchmarks.eta
    {{run}} python -m benchmarks.cpu_image
    {{run}} python -m benchmarks.growth
    {{run}} python -m benchmarks.peers
    {{run}} python -m benchmarks.health_under_load
    {{run}} python -m benchmarks.hostile_images
    {{run}} python -m benchmarks.large_bodies
    {{run}} python -m benchmarks.floods
    {{run}} python -m benchmarks.long_queue
    {{run}} python -m benchmarks.quantized_load
    {{run}} python -m benchmarks.low_ram
    {{run}} python -m benchmarks.model_switches

# The plots of docs/performance.md, from the results in benchmarks/results.
plots *args:
    {{run}} python -m benchmarks.plots {{args}}

# What the documents have from the code: errors, models, files.
docs:
    {{run}} python -m tools.error_table
    {{run}} python -m tools.model_table
    {{run}} python -m tools.file_index
