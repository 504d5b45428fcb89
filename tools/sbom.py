"""Write the software bill of materials: every package of an installation, with its version and its hashes.

``python -m tools.sbom [FILE]`` writes CycloneDX 1.5 as JSON (default: ``sbom.json``), for scanners such as Grype, Trivy
or Dependency-Track. uv makes it from the lock that ``uv sync`` and ``uv run`` keep.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = "sbom.json"


def export() -> dict[str, Any]:
    """Return uv's own document of what an installation without a GPU has."""
    command = ["uv", "export", "--quiet", "--format", "cyclonedx1.5", "--no-default-groups", "--group", "cpu"]
    text = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    document: dict[str, Any] = json.loads(text)
    return document


def finish(document: dict[str, Any]) -> dict[str, Any]:
    """Return it with each file's hash beside its package, and without the addresses that this machine installs from."""
    components = []
    for component in document["components"]:
        files = component.get("externalReferences", [])
        hashes = [each for file in files for each in file.get("hashes", ())]
        kept = {key: value for key, value in component.items() if key not in ("externalReferences", "properties")}
        components.append(kept | ({"hashes": hashes} if hashes else {}))
    return document | {"components": components}


def main() -> None:
    """Write the file."""
    path = Path(sys.argv[1] if len(sys.argv) > 1 else DEFAULT)
    document = finish(export())
    path.write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    print(f"{path}: {len(document['components'])} packages")


if __name__ == "__main__":
    main()
