"""Instructions with images before and after: one image that is changed, or one that takes something from another.

An image is a scene and the seed of the renderer's random numbers. An edit keeps the seed, so all that the instruction
does not name looks the same and stays where it is.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from training.demo import edit_words as ways
from training.demo import words
from training.demo.captions import COLORED_LANDS, NATURAL_COLORS, THINGS_OF, choose_style, sample
from training.demo.world.spec import COLORS, FLYING, SIDES, STANDING, Scene

_SEEDS = 2**31
_TRIES = 300


@dataclass(frozen=True)
class View:
    """An image before it is rendered."""

    scene: Scene
    seed: int


@dataclass(frozen=True)
class Edit:
    """The images that are given, the instruction, and the image that shall come out."""

    kind: str
    references: tuple[View, ...]
    target: View
    instruction: str


Change = tuple[Scene, str]
"""The scene afterwards, and the instruction that asks for it."""
_Kind = Callable[[random.Random, Scene], Change | None]


def sample_edit(rng: random.Random, references: int = 1, kind: str | None = None) -> Edit:
    """Sample an edit.

    Args:
        rng: Decides everything.
        references: How many images are given, 1 or 2.
        kind: One of ``KINDS`` or of ``PAIR_KINDS``; None for any.
    """
    return _with_two(rng, kind) if references == 2 else _with_one(rng, kind)


def _change(scene: Scene, **fields: Any) -> Scene:
    """Change fields whose names are only known here; ``replace`` would want the type of each."""
    return replace(scene, **fields)


def _with_one(rng: random.Random, kind: str | None) -> Edit:
    name = kind or rng.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]
    before, (after, words_) = _find_fitting(rng, KINDS[name][0])
    if kind is None and rng.random() < 0.12:
        other = rng.choice([other for other in KINDS if other != name])
        found = KINDS[other][0](rng, after)
        # The second change must not undo the first.
        if found and all(getattr(found[0], field) == getattr(after, field) for field in _changed_fields(before, after)):
            after, words_ = (
                found[0],
                rng.choice(("{} and {}", "{}, {}", "{} and also {}", "{}, then {}")).format(words_, found[1]),
            )
            name = f"{name}+{other}"
    seed = rng.randrange(_SEEDS)
    return Edit(name, (View(before, seed),), View(after, seed), _finish(rng, words_))


def _changed_fields(one: Scene, other: Scene) -> list[str]:
    return [name for name in vars(one) if getattr(one, name) != getattr(other, name)]


def _find_fitting(rng: random.Random, change: _Kind) -> tuple[Scene, Change]:
    """Find a scene that the change fits, and change it."""
    for _ in range(_TRIES):
        scene = sample(rng)[0]
        found = change(rng, scene)
        if found is not None and found[0] != scene:
            return scene, found
    # Every landscape can become an ink drawing.
    scene = Scene(place="hills")
    return scene, (replace(scene, style="ink"), "turn this into an ink drawing")


# One image: each kind returns None where it does not fit the scene.


def _style(rng: random.Random, scene: Scene) -> Change | None:
    # An ink drawing has lost the colours that another style would need.
    if scene.style == "ink" or (scene.style != "none" and rng.random() > 0.3):
        return None
    style = choose_style(rng, [style for style in ways.STYLE_NOUNS if style != scene.style])
    if rng.random() < 0.75:
        text = rng.choice(ways.STYLE_WAYS).format(rng.choice(ways.STYLE_NOUNS[style]))
    else:
        text = rng.choice(ways.STYLE_MANNERS).format(rng.choice(words.STYLES[style]))
    return replace(scene, style=style), text


def _unstyle(rng: random.Random, scene: Scene) -> Change | None:
    if scene.style in ("none", "ink"):
        return None
    text = rng.choice(ways.UNSTYLE).format(
        style={"pixel": "pixel art"}.get(scene.style, scene.style),
    )
    return replace(scene, style="none"), text


def _set_time(scene: Scene, time: str) -> Scene:
    """Set the time of a scene; the sun turns into the moon and back, in its place."""
    dark = time in ("night", "dusk")
    body = scene.body
    if body == "sun" and dark:
        body = "moon"
    elif body in ("moon", "crescent") and not dark:
        body = "sun"
    return replace(scene, time=time, body=body, stars=scene.stars and time == "night")


def _time(rng: random.Random, scene: Scene) -> Change | None:
    if scene.place in ("space", "abstract") or scene.style == "ink":
        return None
    times = ["noon", "night"] if scene.place == "alien" else ["noon", "sunset", "sunrise", "dusk", "night", "night"]
    if scene.weather not in ("clear", "cloudy"):
        # Rain and fog hide most of what tells other times apart.
        times = ["noon", "sunset", "night"] if scene.place != "alien" else times
    if scene.neon:
        times = ["noon", "sunset", "night"]
    return _at(rng, scene, rng.choice([time for time in times if time != scene.time] or ["night"]))


def _day(rng: random.Random, scene: Scene) -> Change | None:
    """Turn night into day: this is hard to learn, because so little is seen at night."""
    if scene.time not in ("night", "dusk") or scene.place in ("space", "abstract") or scene.style == "ink":
        return None
    return _at(rng, scene, rng.choice(("noon", "noon", "sunset") if scene.place != "alien" else ("noon",)))


def _at(rng: random.Random, scene: Scene, time: str) -> Change:
    after = _set_time(scene, time)
    if time == "night" and scene.weather == "clear" and rng.random() < 0.15:
        return replace(after, stars=True), rng.choice(ways.STARRY)
    if rng.random() < 0.65:
        return after, rng.choice(ways.TIME_WAYS).format(rng.choice(ways.TIMES[time]))
    return after, rng.choice(ways.TIME_MANNERS).format(rng.choice(words.TIMES[time]))


def _set_weather(scene: Scene, weather: str) -> Scene:
    hidden = weather in ("storm", "rain")
    return replace(scene, weather=weather, body="none" if hidden else scene.body, stars=False)


def _weather(rng: random.Random, scene: Scene) -> Change | None:
    if scene.place in ("space", "abstract", "alien") or scene.weather not in ("clear", "cloudy"):
        return None
    choices = ["storm", "fog", "snow", "snow", "rain"]
    if scene.weather == "clear" and scene.body == "none" and scene.style != "ink":
        choices.append("cloudy")
    weather = rng.choice(choices)
    if rng.random() < 0.8:
        text = rng.choice(ways.WEATHERS[weather])
    else:
        text = rng.choice((*words.WEATHERS[weather], *_fill(ways.WEATHER_WAYS, rng, ways.WEATHER_NOUNS[weather])))
    return _set_weather(scene, weather), text


def _fill(patterns: tuple[str, ...], rng: random.Random, nouns: tuple[str, ...]) -> list[str]:
    return [pattern.format(rng.choice(nouns)) for pattern in patterns]


def _clear(rng: random.Random, scene: Scene) -> Change | None:
    if scene.place in ("space", "abstract", "alien") or scene.weather == "clear":
        return None
    noun = rng.choice(ways.WEATHER_NOUNS[scene.weather])
    return replace(scene, weather="clear"), rng.choice(ways.CLEARING).format(noun)


def _land(rng: random.Random, scene: Scene) -> Change | None:
    if scene.place not in COLORED_LANDS or scene.style == "ink" or scene.weather == "storm":
        return None
    if scene.time == "night" and rng.random() < 0.7:
        return None
    if scene.place in ("hills", "forest", "mountains") and rng.random() < 0.12:
        land = rng.choice([land for land in ways.SEASONS if land != scene.land])
        return replace(scene, land=land), rng.choice(ways.SEASONS[land])
    land = rng.choice([land for land in words.LANDS if land != scene.land])
    adjective = rng.choice(words.LANDS[land])
    text = rng.choice(ways.LAND_WAYS).format(noun=rng.choice(ways.LAND_NOUNS[scene.place]), land=adjective)
    return replace(scene, land=land), text


def _noun(rng: random.Random, thing: str) -> str:
    """Choose a name of a thing, without an adjective that the instruction could be about."""
    if rng.random() < 0.6:
        return thing
    return rng.choice([noun for noun in words.THINGS[thing] if " in " not in noun and " with " not in noun])


def _slots(scene: Scene) -> list[str]:
    return [slot for slot in ("thing", "other") if getattr(scene, slot) != "none"]


def _color(rng: random.Random, scene: Scene) -> Change | None:
    slots = _slots(scene)
    if not slots or scene.style == "ink":
        return None
    slot = rng.choice(slots)
    color = rng.choice([color for color in COLORS if color != getattr(scene, f"{slot}_color")])
    text = rng.choice(ways.COLOR_WAYS).format(
        noun=_noun(rng, getattr(scene, slot)), color=rng.choice(words.COLORS[color])
    )
    return _change(scene, **{f"{slot}_color": color}), text


def _free_slot(scene: Scene) -> str | None:
    """Find where another thing fits; on another world a lone thing would take the place of its moons."""
    if scene.place not in THINGS_OF or scene.place == "space":
        return None
    if scene.thing == "none":
        lone = scene.place == "alien" and scene.body == "none"
        return None if lone else "thing"
    return "other" if scene.other == "none" else None


def _put_thing(scene: Scene, slot: str, thing: str, color: str, side: str) -> Scene | None:
    """Put one more thing into a scene; None where something is in the way."""
    if slot == "other" and (thing == scene.thing or side == scene.thing_side):
        return None
    if thing in FLYING and scene.body != "none" and side == scene.body_side:
        return None
    return _change(scene, **{slot: thing, f"{slot}_color": color, f"{slot}_side": side})


def _add(rng: random.Random, scene: Scene) -> Change | None:
    slot = _free_slot(scene)
    if slot is None:
        return None
    thing = rng.choice(THINGS_OF[scene.place])
    if thing in STANDING and scene.place in ("sea", "lake") and rng.random() < 0.6:
        # It needs new ground to stand on.
        return None
    named = rng.random() < 0.75
    color = rng.choice(COLORS if named else NATURAL_COLORS[thing][:1])
    sided = rng.random() < 0.7
    side = rng.choice(SIDES) if sided else "center"
    after = _put_thing(scene, slot, thing, color, side)
    if after is None:
        return None
    noun = rng.choice(words.THINGS[thing])
    phrase = f"a {rng.choice(words.COLORS[color])} {noun}" if named else f"a {noun}"
    text = rng.choice(ways.ADD_WAYS).format(thing=phrase, side=f" {rng.choice(words.SIDES[side])}" if sided else "")
    return after, text


def _the(rng: random.Random, thing: str, color: str) -> str:
    adjective = f"{rng.choice(words.COLORS[color])} " if rng.random() < 0.25 else ""
    return f"the {adjective}{_noun(rng, thing)}"


def _remove(rng: random.Random, scene: Scene) -> Change | None:
    if scene.place in ("space", "alien"):
        # There, the renderer would put something in its place.
        return None
    slots = [slot for slot in _slots(scene) if getattr(scene, slot) != "planet"]
    if slots and (scene.body == "none" or rng.random() < 0.8):
        slot = rng.choice(slots)
        phrase = _the(rng, getattr(scene, slot), getattr(scene, f"{slot}_color"))
        after = _change(scene, **{slot: "none"})
    elif scene.body != "none" and scene.weather == "clear":
        phrase, after = f"the {'sun' if scene.body == 'sun' else 'moon'}", replace(scene, body="none")
    else:
        return None
    return after, rng.choice(ways.REMOVE_WAYS).format(phrase)


def _move(rng: random.Random, scene: Scene) -> Change | None:
    movable = [slot for slot in _slots(scene) if scene.style != "ink"]
    if scene.body != "none" and scene.weather in ("clear", "cloudy") and scene.place not in ("street", "alien"):
        movable += ["body", "body"]
    if not movable:
        return None
    slot = rng.choice(movable)
    field = "body_side" if slot == "body" else f"{slot}_side"
    side = rng.choice([side for side in SIDES if side != getattr(scene, field)])
    after = _change(scene, **{field: side})
    flying = [after.thing_side] * (after.thing in FLYING) + [after.other_side] * (after.other in FLYING)
    if (after.body != "none" and after.body_side in flying) or (
        after.thing != "none" and after.other != "none" and after.thing_side == after.other_side
    ):
        return None
    if slot == "body":
        phrase = f"the {'sun' if scene.body == 'sun' else 'moon'}"
    else:
        phrase = _the(rng, getattr(scene, slot), getattr(scene, f"{slot}_color"))
    text = rng.choice(ways.MOVE_WAYS).format(phrase, side=rng.choice(ways.MOVE_SIDES[side]))
    return after, text


def _replace(rng: random.Random, scene: Scene) -> Change | None:
    slots = [slot for slot in _slots(scene) if getattr(scene, slot) != "planet"]
    if not slots:
        return None
    slot = rng.choice(slots)
    old = getattr(scene, slot)
    group = FLYING if old in FLYING else STANDING
    choices = [thing for thing in group if thing in THINGS_OF[scene.place] and thing not in (scene.thing, scene.other)]
    if old == "boat" or not choices:
        return None
    new = rng.choice(choices)
    text = rng.choice(ways.REPLACE_WAYS).format(old=_noun(rng, old), new=_noun(rng, new))
    return _change(scene, **{slot: new}), text


def _light(rng: random.Random, scene: Scene) -> Change | None:
    """Put the sun or the moon into the sky."""
    if scene.body != "none" or scene.place in ("street", "abstract", "alien", "space") or scene.weather != "clear":
        return None
    body = "moon" if scene.time in ("night", "dusk") else "sun"
    if body == "moon" and rng.random() < 0.2:
        body = "crescent"
    side = rng.choice(SIDES)
    if side in [getattr(scene, f"{slot}_side") for slot in _slots(scene) if getattr(scene, slot) in FLYING]:
        return None
    text = rng.choice(ways.ADD_WAYS).format(
        thing=rng.choice(words.BODIES[body]), side=f" {rng.choice(words.SIDES[side])}"
    )
    return replace(scene, body=body, body_side=side), text


def _neon(rng: random.Random, scene: Scene) -> Change | None:
    if scene.place not in ("city", "street") or scene.neon or scene.style == "ink":
        return None
    return replace(_set_time(scene, "night"), neon=True), rng.choice(ways.NEON)


def _mood(rng: random.Random, scene: Scene) -> Change | None:
    if scene.mood != "none" or scene.style == "ink":
        return None
    mood = rng.choice(tuple(ways.MOODS))
    return replace(scene, mood=mood), rng.choice(ways.MOODS[mood])


def _palette(rng: random.Random, scene: Scene) -> Change | None:
    if scene.place != "abstract" or scene.style == "ink":
        return None
    palette = rng.choice([palette for palette in words.PALETTES if palette != scene.palette])
    text = rng.choice(ways.PALETTE_WAYS).format(rng.choice(words.PALETTES[palette]))
    return replace(scene, palette=palette), text


KINDS: dict[str, tuple[_Kind, float]] = {
    "style": (_style, 20),
    "unstyle": (_unstyle, 2),
    "time": (_time, 18),
    "day": (_day, 8),
    "weather": (_weather, 14),
    "clear": (_clear, 5),
    "land": (_land, 9),
    "color": (_color, 13),
    "add": (_add, 13),
    "remove": (_remove, 7),
    "move": (_move, 5),
    "replace": (_replace, 3),
    "light": (_light, 4),
    "neon": (_neon, 2),
    "mood": (_mood, 3),
    "palette": (_palette, 2),
}


# Two images: the base keeps its scene and takes something from the other.


def _with_two(rng: random.Random, kind: str | None) -> Edit:
    name = kind or rng.choices(list(PAIR_KINDS), [weight for _, weight in PAIR_KINDS.values()])[0]
    for _ in range(_TRIES):
        base, other = sample(rng)[0], sample(rng)[0]
        swapped = rng.random() < 0.25
        names = [rng.choice(ordinals) for ordinals in ways.ORDINALS]
        found = PAIR_KINDS[name][0](rng, base, other, *(reversed(names) if swapped else names))
        if found is not None and found.after != found.base:
            break
    else:
        base, other = Scene(place="hills"), Scene(place="sea", style="ink")
        found, swapped = _Pair(base, other, replace(base, style="ink"), "paint image 1 in the style of image 2"), False
    seed = rng.randrange(_SEEDS)
    views = [View(found.base, seed), View(found.other, rng.randrange(_SEEDS))]
    return Edit(
        name, tuple(reversed(views) if swapped else views), View(found.after, seed), _finish(rng, found.instruction)
    )


@dataclass(frozen=True)
class _Pair:
    base: Scene
    other: Scene
    after: Scene
    instruction: str


_PairKind = Callable[[random.Random, Scene, Scene, str, str], _Pair | None]


def _transfer_thing(rng: random.Random, base: Scene, other: Scene, a: str, b: str) -> _Pair | None:
    slot = _free_slot(base)
    thing = other.thing
    if slot is None or thing == "none" or other.style != base.style or thing not in THINGS_OF[base.place]:
        return None
    if thing in STANDING and base.place in ("sea", "lake"):
        return None
    sided = rng.random() < 0.25
    side = rng.choice(SIDES) if sided else other.thing_side
    after = _put_thing(base, slot, thing, other.thing_color, side)
    if after is None:
        return None
    text = rng.choice(ways.TRANSFER_WAYS).format(noun=_noun(rng, thing), a=a, b=b)
    return _Pair(base, other, after, f"{text} {rng.choice(words.SIDES[side])}" if sided else text)


def _transfer_style(rng: random.Random, base: Scene, other: Scene, a: str, b: str) -> _Pair | None:
    if base.style != "none":
        return None
    style = choose_style(rng, words.STYLES)
    text = rng.choice(ways.STYLE_TRANSFER_WAYS).format(a=a, b=b)
    return _Pair(base, replace(other, style=style), replace(base, style=style), text)


def _transfer_time(rng: random.Random, base: Scene, other: Scene, a: str, b: str) -> _Pair | None:
    plain = ("space", "abstract", "alien")
    if base.place in plain or other.place in plain or base.time == other.time or base.neon or other.neon:
        return None
    if {base.style, other.style} != {"none"} or {base.weather, other.weather} - {"clear", "cloudy"}:
        return None
    return _Pair(base, other, _set_time(base, other.time), rng.choice(ways.TIME_TRANSFER_WAYS).format(a=a, b=b))


def _transfer_weather(rng: random.Random, base: Scene, other: Scene, a: str, b: str) -> _Pair | None:
    plain = ("space", "abstract", "alien")
    if base.place in plain or other.place in plain or base.weather not in ("clear", "cloudy"):
        return None
    if {base.style, other.style} != {"none"}:
        return None
    weather = rng.choice(("storm", "fog", "snow", "rain"))
    text = rng.choice(ways.WEATHER_TRANSFER_WAYS).format(a=a, b=b)
    return _Pair(base, _set_weather(other, weather), _set_weather(base, weather), text)


def _transfer_land(rng: random.Random, base: Scene, other: Scene, a: str, b: str) -> _Pair | None:
    if base.place not in COLORED_LANDS or other.place not in COLORED_LANDS or {base.style, other.style} != {"none"}:
        return None
    if {base.time, other.time} & {"night", "dusk"} or {base.weather, other.weather} - {"clear", "cloudy"}:
        return None
    land = rng.choice([land for land in words.LANDS if land != base.land])
    noun = rng.choice(ways.LAND_NOUNS[base.place])
    text = rng.choice(ways.LAND_TRANSFER_WAYS).format(a=a, b=b, noun=noun)
    return _Pair(base, replace(other, land=land), replace(base, land=land), text)


def _transfer_color(rng: random.Random, base: Scene, other: Scene, a: str, b: str) -> _Pair | None:
    if "none" in (base.thing, other.thing) or base.thing_color == other.thing_color:
        return None
    if {base.style, other.style} != {"none"}:
        return None
    text = rng.choice(ways.COLOR_TRANSFER_WAYS).format(
        noun=_noun(rng, base.thing), other=_noun(rng, other.thing), a=a, b=b
    )
    return _Pair(base, other, replace(base, thing_color=other.thing_color), text)


def _within(rng: random.Random, base: Scene, other: Scene, a: str, b: str) -> _Pair | None:
    """Change the base alone; the other image has no part in it."""
    del b
    change = rng.choice((_style, _time, _weather, _color, _land, _remove, _add))
    found = change(rng, base)
    if found is None:
        return None
    return _Pair(base, other, found[0], rng.choice(ways.WITHIN_WAYS).format(found[1], a=a))


PAIR_KINDS: dict[str, tuple[_PairKind, float]] = {
    "transfer thing": (_transfer_thing, 28),
    "transfer style": (_transfer_style, 26),
    "transfer time": (_transfer_time, 12),
    "transfer weather": (_transfer_weather, 9),
    "transfer land": (_transfer_land, 7),
    "transfer color": (_transfer_color, 8),
    "within": (_within, 12),
}


def _finish(rng: random.Random, text: str) -> str:
    """Add politeness, quality words, words without meaning, case and punctuation."""
    text = " ".join(text.split())
    if rng.random() < 0.12:
        text = rng.choice(ways.PREFIXES) + text
    way = rng.random()
    if way < 0.1:
        text += rng.choice(ways.SUFFIXES)
    elif way < 0.16:
        text += ", " + ", ".join(rng.sample(words.FLUFF, rng.randint(1, 2)))
    elif way < 0.22:
        pieces = text.split(" ")
        pieces.insert(rng.randint(0, len(pieces)), rng.choice(words.WORDS))
        text = " ".join(pieces)
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}")
    way = rng.random()
    if way < 0.35:
        text = text[:1].upper() + text[1:]
    elif way < 0.37:
        text = text.upper()
    if rng.random() < 0.2:
        text += rng.choice((".", ".", "!"))
    return text
