"""Instructions for training: each asks for what its scenes show, and nothing else changes."""

import random

import pytest

from training.demo.edits import KINDS, PAIR_KINDS, sample_edit

# What each kind of edit of one image may change.
_FIELDS = {
    "style": {"style"},
    "unstyle": {"style"},
    "time": {"time", "body", "stars"},
    "day": {"time", "body", "stars"},
    "weather": {"weather", "body", "stars"},
    "clear": {"weather"},
    "land": {"land"},
    "color": {"thing_color", "other_color"},
    "add": {f"{slot}{part}" for slot in ("thing", "other") for part in ("", "_color", "_side")},
    "remove": {"thing", "other", "body"},
    "move": {"thing_side", "other_side", "body_side"},
    "replace": {"thing", "other"},
    "light": {"body", "body_side"},
    "neon": {"neon", "time", "body", "stars"},
    "mood": {"mood"},
    "palette": {"palette"},
}


def test_every_kind_says_what_it_changes() -> None:
    assert set(_FIELDS) == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_changes_what_it_is_about_and_nothing_else(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(40):
        edit = sample_edit(rng, 1, kind)
        (before,) = edit.references
        changed = {
            name for name in vars(before.scene) if getattr(before.scene, name) != getattr(edit.target.scene, name)
        }
        assert changed
        assert changed <= _FIELDS[kind]
        assert edit.target.seed == before.seed
        assert edit.instruction.strip()


@pytest.mark.parametrize("kind", PAIR_KINDS)
def test_the_result_has_the_layout_of_exactly_one_of_two_references(kind: str) -> None:
    rng = random.Random(kind)
    for _ in range(40):
        edit = sample_edit(rng, 2, kind)
        bases = [view for view in edit.references if view.seed == edit.target.seed]
        assert len(edit.references) == 2
        assert [view.scene.place for view in bases] == [edit.target.scene.place]
        assert bases[0].scene != edit.target.scene


def test_one_edit_is_asked_for_in_many_ways() -> None:
    rng = random.Random(1)
    said = {sample_edit(rng, 1, "style").instruction for _ in range(400)}
    assert len(said) > 200


def test_instructions_are_short_and_long() -> None:
    rng = random.Random(2)
    lengths = [len(sample_edit(rng, 1, "time").instruction.split()) for _ in range(200)]
    assert min(lengths) <= 2 < 8 <= max(lengths)
