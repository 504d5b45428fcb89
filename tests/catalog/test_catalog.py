"""The table of models: complete, true to mflux where mflux knows better, and the same in the document."""

import pytest

from mflux_api.catalog import BUILT_IN, Catalog, Model
from mflux_api.catalog.names import SPELLINGS
from mflux_api.catalog.revisions import PINNED
from mflux_api.config import CustomModel, ModelSettings, Settings
from tools.model_table import DOCUMENT, update_tables


def test_catalog_has_thirty_aliases_the_kv_model_and_two_demos_each_with_its_rules() -> None:
    assert len(BUILT_IN) == 33
    assert len({model.alias for model in BUILT_IN}) == 33
    assert sum(model.quantization == "runtime" for model in BUILT_IN) == 18
    assert sum(model.quantization == "stored" for model in BUILT_IN) == 6
    for model in BUILT_IN:
        assert model.distilled == (not model.alias.startswith(("flux2-klein-base", "flux2-dev", "demo-base")))
        assert (model.bits is None) == (model.quantization == "none")
        assert model.remote != model.embedded
        assert model.size_gb is not None
        rules = (1, 1.0) if model.upscales else (None, 1.0) if model.distilled else (50, 4.0)
        assert (model.default_steps, model.default_guidance) == rules
        assert model.takes_negative_prompts == ("-base" in model.alias)
        assert model.supports_guidance != model.distilled
        assert model.gated <= (model.licence == "FLUX non-commercial")
    assert [model.alias for model in BUILT_IN if model.kv_cache] == ["flux2-klein-9b-kv"]


def test_quantized_entries_follow_their_base_and_are_smaller() -> None:
    catalog = Catalog()
    for model in BUILT_IN:
        base = catalog.get(model.base)
        assert base is not None
        assert (model.distilled, model.family, model.licence) == (base.distilled, base.family, base.licence)
        if model.quantization == "runtime":
            assert (model.repo, model.revision, model.gated) == (base.repo, base.revision, base.gated)
        if model.bits is not None:
            assert (model.size_gb or 0) < (base.size_gb or 0) * model.bits / 16 * 1.25


@pytest.mark.slow
def test_spellings_repositories_and_pins_are_those_of_mflux() -> None:
    from mflux.models.common.config.model_config import AVAILABLE_MODELS
    from mflux.models.common.resolution.model_revisions import ModelRevisions

    catalog = Catalog()
    theirs = {name: config for name, config in AVAILABLE_MODELS.items() if name in catalog.aliases()}
    theirs["seedvr2"] = AVAILABLE_MODELS["seedvr2-3b"]
    assert set(theirs) == set(SPELLINGS)
    for alias, config in theirs.items():
        for spelling in (*config.aliases, config.model_name):
            assert getattr(catalog.get(spelling), "alias", None) == alias, spelling
        model = catalog.get(alias)
        assert model is not None
        assert model.kv_cache == config.supports_kv_cache
    for model in BUILT_IN:
        assert model.revision == ModelRevisions.get(model.repo), model.alias
    assert set(PINNED) <= {model.repo for model in BUILT_IN}


def test_unknown_names_stay_unknown() -> None:
    catalog = Catalog()
    assert [catalog.get(name) for name in ("", "FLUX2-KLEIN-4B", "klein", "flux3")] == [None] * 4


def test_custom_entry_takes_the_runtime_aliases_along_with_its_own_rules() -> None:
    custom = Model(
        alias="flux2-klein-4b", repo="", base="demo-base", description="mine", path="/weights", distilled=False
    )
    catalog = Catalog([custom])
    followers = [model for model in catalog if model.path == "/weights"]
    assert [model.bits for model in followers] == [None, 3, 4, 6, 8]
    assert not any(model.distilled for model in followers)
    assert {model.base for model in followers[1:]} == {"flux2-klein-4b"}
    assert len(catalog) == 33
    assert catalog.get("klein-4b") is custom


def test_custom_name_wins_over_a_spelling() -> None:
    custom = Model(alias="klein-4b", repo="a/b", base="flux2-klein-9b", description="mine")
    assert Catalog([custom]).get("klein-4b") is custom


def test_custom_repository_keeps_its_revision_and_nothing_of_the_built_in_source() -> None:
    entry = CustomModel(name="flux2-klein-9b", base="flux2-klein-9b", repo="me/mine", revision="v2")
    catalog = Settings(models=ModelSettings(custom=(entry,))).catalog()
    for alias in ("flux2-klein-9b", "flux2-klein-9b-4-bit"):
        model = catalog.get(alias)
        assert model is not None
        assert (model.repo, model.revision, model.gated, model.size_gb) == ("me/mine", "v2", False, None)
        assert model.remote


def test_table_in_the_document_is_made_from_the_catalog() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert update_tables(text) == text, "run: uv run --group dev python -m tools.model_table"


@pytest.mark.parametrize("model", BUILT_IN, ids=lambda model: model.alias)
def test_every_model_names_the_files_it_needs(model: Model) -> None:
    if model.family == "seedvr2":
        assert len(model.files) == 2
    else:
        assert {"model_index.json", "transformer/*.safetensors", "tokenizer/*"} <= set(model.files)
