"""Write the tables in docs/models.md from :mod:`mflux_api.catalog`. Run: ``python -m tools.model_table``."""

import re
from pathlib import Path

from mflux_api.catalog import BUILT_IN, Model
from mflux_api.catalog.names import SPELLINGS

DOCUMENT = Path(__file__).resolve().parent.parent / "docs" / "models.md"


def update_tables(text: str) -> str:
    """Return the document with the tables in their places."""
    for name, table in (("rules", rules()), ("sources", sources()), ("spellings", spellings())):
        text = _replace_block(text, name, table)
    return text


def _replace_block(text: str, name: str, table: str) -> str:
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    return pattern.sub(lambda _: f"{begin}\n{table}\n{end}", text)


def rules() -> str:
    """Return the table of what each alias is and does."""
    rows = ["| Alias | Kind | Weights | Steps | Guidance | Native size | Size on disk | Verified |"]
    rows.append("|---|---|---|---|---|---|---|---|")
    for model in BUILT_IN:
        width, height = model.native_size
        steps = model.default_steps or 4
        rows.append(
            f"| `{model.alias}` | {_kind(model)} | {_weights(model)} | {steps} | {_guidance(model)} "
            f"| {width} × {height} | {model.size_gb:g} GB{_star(model)} | {_verified(model)} |"
        )
    return "\n".join(rows)


def sources() -> str:
    """Return the table of where the files of each repository come from."""
    rows = ["| Repository | Revision | Licence | Gated |", "|---|---|---|---|"]
    seen: set[str] = set()
    for model in BUILT_IN:
        if model.remote and model.repo not in seen:
            seen.add(model.repo)
            revision = f"`{model.revision[:12]}…`, mflux's pin" if model.revision else "`main`"
            rows.append(f"| `{model.repo}` | {revision} | {model.licence} | {'yes' if model.gated else 'no'} |")
    return "\n".join(rows)


def spellings() -> str:
    """Return the table of the other names of the models."""
    rows = ["| Alias | Also |", "|---|---|"]
    rows += [f"| `{alias}` | {', '.join(f'`{name}`' for name in names)} |" for alias, names in SPELLINGS.items()]
    return "\n".join(rows)


def _kind(model: Model) -> str:
    if model.family == "seedvr2":
        return "upscaler"
    kind = "distilled" if model.distilled else "base"
    return f"{kind}, KV-cached edits" if model.kv_cache else kind


def _weights(model: Model) -> str:
    match model.quantization:
        case "runtime":
            return f"{model.bits}-bit, quantized here from `{model.base}`"
        case "stored":
            return f"{model.bits}-bit, stored"
        case _:
            return "bfloat16" if model.family != "seedvr2" else "float16"


def _guidance(model: Model) -> str:
    if model.family == "seedvr2":
        return "none"
    return f"0–30, default {model.default_guidance:g}" if model.supports_guidance else "fixed at 1.0"


def _star(model: Model) -> str:
    return "*" if model.size_source == "computed" else ""


def _verified(model: Model) -> str:
    if model.embedded:
        return "A"
    if model.family != "flux2-klein":
        return "E" if model.upscales else "D"
    return {"none": "B", "runtime": "B", "stored": "C"}[model.quantization]


if __name__ == "__main__":
    DOCUMENT.write_text(update_tables(DOCUMENT.read_text("utf-8")), "utf-8")
