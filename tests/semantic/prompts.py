"""Prompts and what must be measured in their images; fixed before the last training run.

``scene`` says the same in the renderer's words (fields of ``training.demo.world.spec.Scene``), so that the measures
themselves can be tried on rendered images.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """One prompt."""

    prompt: str
    checks: tuple[tuple[str, ...], ...]
    scene: dict[str, object] = field(default_factory=dict)
    fast: bool = False
    """Whether it is one of the few that run in CI."""


def _scene(place: str, **others: object) -> dict[str, object]:
    return {"place": place, **others}


CASES: tuple[Case, ...] = (
    # Times.
    Case("a beautiful sunset over mountains", (("warm",),), _scene("mountains", time="sunset", body="sun"), fast=True),
    Case("sunset over mountains, vibrant colors", (("warm",),), _scene("mountains", time="sunset", mood="vibrant")),
    Case("mountains at night", (("dark",),), _scene("mountains", time="night")),
    Case("a starry night over the hills", (("dark",),), _scene("hills", time="night", stars=True), fast=True),
    Case("the sea at sunrise", (("warm",), ("bright",)), _scene("sea", time="sunrise", body="sun")),
    Case("green hills at noon", (("colored_land", "green"), ("blue_sky",)), _scene("hills", land="green"), fast=True),
    Case("a forest in the evening glow", (("warm",), ("woody",)), _scene("forest", time="sunset", body="sun")),
    Case("sundown in the desert", (("warm",), ("sandy",)), _scene("desert", time="sunset", body="sun")),
    # Sun and moon.
    Case(
        "the moon on the left over the sea at night",
        (("dark",), ("light_at", "left")),
        _scene("sea", time="night", body="moon", body_side="left"),
        fast=True,
    ),
    Case(
        "mountains at night with the full moon on the right",
        (("dark",), ("light_at", "right")),
        _scene("mountains", time="night", body="moon", body_side="right"),
    ),
    Case(
        "a moonlit night, hills, the moon in the center",
        (("dark",), ("light_at", "center")),
        _scene("hills", time="night", body="moon", body_side="center"),
    ),
    Case(
        "sunset over the ocean, the sun on the left",
        (("warm",), ("light_at", "left")),
        _scene("sea", time="sunset", body="sun", body_side="left"),
    ),
    Case(
        "sunset over the sea with the sun on the right side",
        (("warm",), ("light_at", "right")),
        _scene("sea", time="sunset", body="sun", body_side="right"),
        fast=True,
    ),
    Case(
        "a desert at noon, the sun in the middle",
        (("sandy",), ("light_at", "center")),
        _scene("desert", body="sun", body_side="center"),
    ),
    # Land.
    Case("red mountains at noon", (("colored_land", "red"),), _scene("mountains", land="red"), fast=True),
    Case("blue mountains under a blue sky", (("colored_land", "blue"),), _scene("mountains", land="blue")),
    Case("golden hills at noon", (("colored_land", "golden"),), _scene("hills", land="golden")),
    Case("purple hills by day", (("colored_land", "purple"),), _scene("hills", land="purple")),
    Case("snowy mountains in daylight", (("white_land",),), _scene("mountains", land="snowy")),
    Case("a snow-covered hill", (("white_land",),), _scene("hills", land="snowy")),
    Case("a red desert", (("colored_land", "red"),), _scene("desert", land="red")),
    Case("sand dunes", (("sandy",), ("blue_sky",)), _scene("desert"), fast=True),
    # Weather.
    Case("hills in falling snow", (("white_land",), ("gray",)), _scene("hills", weather="snow"), fast=True),
    Case("mountains in thick fog", (("gray",), ("pale",)), _scene("mountains", weather="fog")),
    Case("a storm over the sea with lightning", (("gray",),), _scene("sea", weather="storm")),
    Case("rain over the city", (("gray",),), _scene("city", weather="rain")),
    # Water, wood, town, space.
    Case("a beautiful landscape with mountains and lakes", (("mirrored",), ("blue_water",)), _scene("lake"), fast=True),
    Case("the open ocean on a clear day", (("blue_water",), ("blue_sky",)), _scene("sea")),
    Case("a peaceful forest scene", (("woody",),), _scene("forest")),
    Case("a city skyline at night", (("dark",), ("windows",)), _scene("city", time="night")),
    Case("a futuristic city at night", (("neon",), ("windows",)), _scene("city", time="night", neon=True), fast=True),
    Case("a cyberpunk street scene", (("neon",), ("windows",)), _scene("street", time="night", neon=True)),
    Case("outer space with planets and stars", (("black_sky",),), _scene("space")),
    Case(
        "a red planet on the left in space",
        (("black_sky",), ("colored_thing", "red", "left")),
        _scene("space", thing="planet", thing_color="red", thing_side="left"),
    ),
    # Things.
    Case(
        "a red house on the left",
        (("colored_thing", "red", "left"),),
        _scene("hills", thing="house", thing_color="red", thing_side="left"),
        fast=True,
    ),
    Case(
        "a red house on the right, hills",
        (("colored_thing", "red", "right"),),
        _scene("hills", thing="house", thing_color="red", thing_side="right"),
    ),
    Case(
        "a purple castle in the center of a green meadow",
        (("colored_thing", "purple", "center"),),
        _scene("hills", land="green", thing="castle", thing_color="purple", thing_side="center"),
    ),
    Case(
        "a yellow balloon on the right over mountains",
        (("colored_thing", "yellow", "right"),),
        _scene("mountains", thing="balloon", thing_color="yellow", thing_side="right"),
        fast=True,
    ),
    Case(
        "a red boat on the left on the sea",
        (("colored_thing", "red", "left"), ("blue_water",)),
        _scene("sea", thing="boat", thing_color="red", thing_side="left"),
    ),
    Case(
        "an orange sailboat on a lake, right",
        (("colored_thing", "orange", "right"),),
        _scene("lake", thing="boat", thing_color="orange", thing_side="right"),
    ),
    Case(
        "a pink tree on the left, rolling hills",
        (("colored_thing", "pink", "left"),),
        _scene("hills", thing="tree", thing_color="pink", thing_side="left"),
    ),
    Case(
        "a red bird flying over the sea on the right",
        (("colored_thing", "red", "right"),),
        _scene("sea", thing="bird", thing_color="red", thing_side="right"),
    ),
    Case(
        "a purple hot air balloon in the middle, desert",
        (("colored_thing", "purple", "center"), ("sandy",)),
        _scene("desert", thing="balloon", thing_color="purple", thing_side="center"),
    ),
    # Styles and patterns.
    Case("a watercolor of a lake", (("paper_border",),), _scene("lake", style="watercolor")),
    Case(
        "pixel art of mountains at sunset", (("blocks",), ("warm",)), _scene("mountains", time="sunset", style="pixel")
    ),
    Case("an ink drawing of mountains", (("ink",),), _scene("mountains", style="ink"), fast=True),
    Case("abstract geometric patterns, colorful", (("colorful",),), _scene("abstract"), fast=True),
    Case("colorful abstract triangles", (("colorful",),), _scene("abstract", pattern="triangles")),
)
