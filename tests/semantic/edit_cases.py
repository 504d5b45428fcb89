"""Instructions, their references, and what must be measured in the results; fixed before the last training run."""

from dataclasses import dataclass, field

Check = tuple[str, ...]


@dataclass(frozen=True)
class EditCase:
    """One instruction with the scenes of its references."""

    instruction: str
    before: tuple[dict[str, object], ...]
    """Fields of ``training.demo.world.spec.Scene``, one for each reference."""
    after: dict[str, object]
    """What the instruction makes of the first reference (or of ``base``): changed fields only."""
    checks: tuple[Check, ...]
    """Measures of ``training.demo.measures`` that hold afterwards and not before."""
    kept: bool = True
    """Whether the result keeps the layout of the base."""
    base: int = 0
    """Which reference keeps its layout."""
    fast: bool = field(default=False)
    """Whether it is one of the few that run in CI."""

    @property
    def scene(self) -> dict[str, object]:
        """The whole scene of the result."""
        return {**self.before[self.base], **self.after}


def _scene(place: str, **others: object) -> dict[str, object]:
    return {"place": place, **others}


_HILLS = _scene("hills", thing="house", thing_color="red", thing_side="left")
_EVENING = _scene("hills", time="sunset", body="sun", thing="house", thing_color="red", thing_side="left")
_PEAKS = _scene("mountains")
_LAKE = _scene("lake", body="sun", body_side="right")
_BOAT = _scene("sea", thing="boat", thing_color="white", thing_side="center")
_DESERT = _scene("desert", thing="balloon", thing_color="red", thing_side="left")
_CASTLE = _scene("forest", thing="castle", thing_color="purple", thing_side="right")

EDIT_CASES: tuple[EditCase, ...] = (
    # Styles.
    EditCase(
        "turn this into a watercolor painting", (_HILLS,), {"style": "watercolor"}, (("paper_border",),), fast=True
    ),
    EditCase("make it a watercolor", (_LAKE,), {"style": "watercolor"}, (("paper_border",),)),
    EditCase("turn this into pixel art", (_BOAT,), {"style": "pixel"}, (("blocks",),)),
    EditCase("convert the picture to pixel art", (_PEAKS,), {"style": "pixel"}, (("blocks",),)),
    EditCase("make it an ink drawing", (_LAKE,), {"style": "ink"}, (("ink",),), fast=True),
    EditCase("turn this into a black and white ink drawing", (_HILLS,), {"style": "ink"}, (("ink",),)),
    # Times.
    EditCase("make it night", (_HILLS,), {"time": "night"}, (("dark",),), fast=True),
    EditCase("make it night", (_BOAT,), {"time": "night"}, (("dark",),)),
    EditCase("the same place at night", (_PEAKS,), {"time": "night"}, (("dark",),)),
    EditCase("turn it into a sunset", (_PEAKS,), {"time": "sunset"}, (("warm",),), fast=True),
    EditCase("make it evening", (_BOAT,), {"time": "sunset"}, (("warm",),)),
    EditCase(
        "turn night into day",
        (_scene("mountains", time="night", body="moon", body_side="left"),),
        {"time": "noon", "body": "sun"},
        (("bright",),),
    ),
    EditCase("make it a bright day", ({**_HILLS, "time": "night"},), {"time": "noon"}, (("blue_sky",), ("bright",))),
    # Weathers.
    EditCase("add snow", (_HILLS,), {"weather": "snow"}, (("white_land",),), fast=True),
    EditCase("make it winter", (_CASTLE,), {"weather": "snow"}, (("white_land",),)),
    EditCase("cover it in fog", (_PEAKS,), {"weather": "fog"}, (("gray",), ("pale",))),
    EditCase("make it stormy", (_BOAT,), {"weather": "storm"}, (("gray",),)),
    EditCase("make it rain", (_HILLS,), {"weather": "rain"}, (("gray",),)),
    # Land and things.
    EditCase("make the hills red", (_scene("hills"),), {"land": "red"}, (("colored_land", "red"),)),
    EditCase("paint the mountains purple", (_PEAKS,), {"land": "purple"}, (("colored_land", "purple"),)),
    EditCase(
        "make the house blue", (_EVENING,), {"thing_color": "blue"}, (("colored_thing", "blue", "left"),), fast=True
    ),
    EditCase("paint the castle red", (_CASTLE,), {"thing_color": "red"}, (("colored_thing", "red", "right"),)),
    EditCase(
        "change the color of the balloon to purple",
        (_DESERT,),
        {"thing_color": "purple"},
        (("colored_thing", "purple", "left"),),
    ),
    EditCase("make the boat red", (_BOAT,), {"thing_color": "red"}, (("colored_thing", "red", "center"),)),
    EditCase(
        "add a red balloon on the right",
        (_PEAKS,),
        {"thing": "balloon", "thing_color": "red", "thing_side": "right"},
        (("colored_thing", "red", "right"),),
        fast=True,
    ),
    EditCase(
        "put a yellow house on the left",
        (_PEAKS,),
        {"thing": "house", "thing_color": "yellow", "thing_side": "left"},
        (("colored_thing", "yellow", "left"),),
    ),
    EditCase(
        "move the moon to the left",
        (_scene("sea", time="night", body="moon", body_side="right"),),
        {"body_side": "left"},
        (("light_at", "left"),),
        kept=False,
    ),
    # Two references.
    EditCase(
        "put the balloon of the second picture into the first",
        (_PEAKS, _scene("sea", thing="balloon", thing_color="red", thing_side="right")),
        {"thing": "balloon", "thing_color": "red", "thing_side": "right"},
        (("colored_thing", "red", "right"),),
        fast=True,
    ),
    EditCase(
        "put the house of the second picture into the first",
        (
            _scene("mountains", time="sunset", body="sun"),
            _scene("desert", thing="house", thing_color="purple", thing_side="left"),
        ),
        {"thing": "house", "thing_color": "purple", "thing_side": "left"},
        (("colored_thing", "purple", "left"),),
    ),
    EditCase(
        "paint the first picture in the style of the second",
        (_HILLS, _scene("sea", style="watercolor")),
        {"style": "watercolor"},
        (("paper_border",),),
        fast=True,
    ),
    EditCase(
        "paint the first picture in the style of the second",
        (_LAKE, _scene("forest", style="ink")),
        {"style": "ink"},
        (("ink",),),
    ),
    EditCase(
        "paint the second picture in the style of the first",
        (_scene("city", style="pixel"), _CASTLE),
        {"style": "pixel"},
        (("blocks",),),
        base=1,
    ),
    EditCase(
        "give image 1 the light of image 2", (_PEAKS, _scene("desert", time="night")), {"time": "night"}, (("dark",),)
    ),
)


def seed_of(case: EditCase, reference: int) -> int:
    """Return the renderer's seed of a case's reference; all differ, so no two images share a layout."""
    return 41 + 10 * EDIT_CASES.index(case) + reference
