"""Instructions with pictures before and after: one picture that is changed, or one that takes something from another.

A picture is a scene and a seed of the renderer's own chance: whatever keeps both looks the same, so that what nobody
asked to change stays where it is.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from training.demo import edit_words as ways
from training.demo import words
from training.demo.captions import COLORED_LANDS, NATURAL_COLORS, THINGS_OF, draw_style, sample
from training.demo.world.spec import COLORS, FLYING, SIDES, STANDING, Scene

_SEEDS = 2**31
_TRIES = 300


@dataclass(frozen=True)
class View:
    """A picture before it is painted."""

    scene: Scene
    seed: int


@dataclass(frozen=True)
class Edit:
    """What is given, what is asked, and what shall come out."""

    kind: str
    references: tuple[View, ...]
    target: View
    instruction: str


Change = tuple[Scene, str]
"""The scene afterwards and the words for it."""
_Kind = Callable[[random.Random, Scene], Change | None]


def sample_edit(chance: random.Random, references: int = 1, kind: str | None = None) -> Edit:
    """An edit of one reference, or of two; ``kind`` names one of ``KINDS`` or ``PAIR_KINDS``."""
    return _with_two(chance, kind) if references == 2 else _with_one(chance, kind)


def _with_one(chance: random.Random, kind: str | None) -> Edit:
    name = kind or chance.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]
    before, (after, words_) = _drawn(chance, KINDS[name][0])
    if kind is None and chance.random() < 0.12:
        other = chance.choice([other for other in KINDS if other != name])
        found = KINDS[other][0](chance, after)
        # The second change must not undo the first.
        if found and all(getattr(found[0], field) == getattr(after, field) for field in _changed(before, after)):
            after, words_ = (
                found[0],
                chance.choice(("{} and {}", "{}, {}", "{} and also {}", "{}, then {}")).format(words_, found[1]),
            )
            name = f"{name}+{other}"
    seed = chance.randrange(_SEEDS)
    return Edit(name, (View(before, seed),), View(after, seed), _finish(chance, words_))


def _changed(one: Scene, other: Scene) -> list[str]:
    return [name for name in vars(one) if getattr(one, name) != getattr(other, name)]


def _drawn(chance: random.Random, change: _Kind) -> tuple[Scene, Change]:
    """A scene that the change fits, and the change."""
    for _ in range(_TRIES):
        scene = sample(chance)[0]
        found = change(chance, scene)
        if found is not None and found[0] != scene:
            return scene, found
    # Every landscape can be painted in ink.
    scene = Scene(place="hills")
    return scene, (replace(scene, style="ink"), "turn this into an ink drawing")


# One picture: each kind returns None where it does not fit.


def _style(chance: random.Random, scene: Scene) -> Change | None:
    # An ink drawing has lost the colours that another style would need.
    if scene.style == "ink" or (scene.style != "none" and chance.random() > 0.3):
        return None
    style = draw_style(chance, [style for style in ways.STYLE_NOUNS if style != scene.style])
    if chance.random() < 0.75:
        text = chance.choice(ways.STYLE_WAYS).format(chance.choice(ways.STYLE_NOUNS[style]))
    else:
        text = chance.choice(ways.STYLE_MANNERS).format(chance.choice(words.STYLES[style]))
    return replace(scene, style=style), text


def _unstyle(chance: random.Random, scene: Scene) -> Change | None:
    if scene.style in ("none", "ink"):
        return None
    text = chance.choice(ways.UNSTYLE).format(
        style={"pixel": "pixel art"}.get(scene.style, scene.style),
    )
    return replace(scene, style="none"), text


def _timed(scene: Scene, time: str) -> Scene:
    """The scene at another time; the sun turns into the moon and back, in its place."""
    dark = time in ("night", "dusk")
    body = scene.body
    if body == "sun" and dark:
        body = "moon"
    elif body in ("moon", "crescent") and not dark:
        body = "sun"
    return replace(scene, time=time, body=body, stars=scene.stars and time == "night")


def _time(chance: random.Random, scene: Scene) -> Change | None:
    if scene.place in ("space", "abstract") or scene.style == "ink":
        return None
    times = ["noon", "night"] if scene.place == "alien" else ["noon", "sunset", "sunrise", "dusk", "night", "night"]
    if scene.weather not in ("clear", "cloudy"):
        # Rain and fog hide most of what tells other times apart.
        times = ["noon", "sunset", "night"] if scene.place != "alien" else times
    if scene.neon:
        times = ["noon", "sunset", "night"]
    return _at(chance, scene, chance.choice([time for time in times if time != scene.time] or ["night"]))


def _day(chance: random.Random, scene: Scene) -> Change | None:
    """Night becomes day: hard to learn, because so little is seen at night."""
    if scene.time not in ("night", "dusk") or scene.place in ("space", "abstract") or scene.style == "ink":
        return None
    return _at(chance, scene, chance.choice(("noon", "noon", "sunset") if scene.place != "alien" else ("noon",)))


def _at(chance: random.Random, scene: Scene, time: str) -> Change:
    after = _timed(scene, time)
    if time == "night" and scene.weather == "clear" and chance.random() < 0.15:
        return replace(after, stars=True), chance.choice(ways.STARRY)
    if chance.random() < 0.65:
        return after, chance.choice(ways.TIME_WAYS).format(chance.choice(ways.TIMES[time]))
    return after, chance.choice(ways.TIME_MANNERS).format(chance.choice(words.TIMES[time]))


def _weathered(scene: Scene, weather: str) -> Scene:
    hidden = weather in ("storm", "rain")
    return replace(scene, weather=weather, body="none" if hidden else scene.body, stars=False)


def _weather(chance: random.Random, scene: Scene) -> Change | None:
    if scene.place in ("space", "abstract", "alien") or scene.weather not in ("clear", "cloudy"):
        return None
    choices = ["storm", "fog", "snow", "snow", "rain"]
    if scene.weather == "clear" and scene.body == "none" and scene.style != "ink":
        choices.append("cloudy")
    weather = chance.choice(choices)
    if chance.random() < 0.8:
        text = chance.choice(ways.WEATHERS[weather])
    else:
        text = chance.choice((*words.WEATHERS[weather], *_said(ways.WEATHER_WAYS, chance, ways.WEATHER_NOUNS[weather])))
    return _weathered(scene, weather), text


def _said(patterns: tuple[str, ...], chance: random.Random, nouns: tuple[str, ...]) -> list[str]:
    return [pattern.format(chance.choice(nouns)) for pattern in patterns]


def _clear(chance: random.Random, scene: Scene) -> Change | None:
    if scene.place in ("space", "abstract", "alien") or scene.weather == "clear":
        return None
    noun = chance.choice(ways.WEATHER_NOUNS[scene.weather])
    return replace(scene, weather="clear"), chance.choice(ways.CLEARING).format(noun)


def _land(chance: random.Random, scene: Scene) -> Change | None:
    if scene.place not in COLORED_LANDS or scene.style == "ink" or scene.weather == "storm":
        return None
    if scene.time == "night" and chance.random() < 0.7:
        return None
    if scene.place in ("hills", "forest", "mountains") and chance.random() < 0.12:
        land = chance.choice([land for land in ways.SEASONS if land != scene.land])
        return replace(scene, land=land), chance.choice(ways.SEASONS[land])
    land = chance.choice([land for land in words.LANDS if land != scene.land])
    adjective = chance.choice(words.LANDS[land])
    text = chance.choice(ways.LAND_WAYS).format(noun=chance.choice(ways.LAND_NOUNS[scene.place]), land=adjective)
    return replace(scene, land=land), text


def _noun(chance: random.Random, thing: str) -> str:
    """A thing's name without an adjective that the instruction could be about."""
    if chance.random() < 0.6:
        return thing
    return chance.choice([noun for noun in words.THINGS[thing] if " in " not in noun and " with " not in noun])


def _slots(scene: Scene) -> list[str]:
    return [slot for slot in ("thing", "other") if getattr(scene, slot) != "none"]


def _color(chance: random.Random, scene: Scene) -> Change | None:
    slots = _slots(scene)
    if not slots or scene.style == "ink":
        return None
    slot = chance.choice(slots)
    color = chance.choice([color for color in COLORS if color != getattr(scene, f"{slot}_color")])
    text = chance.choice(ways.COLOR_WAYS).format(
        noun=_noun(chance, getattr(scene, slot)), color=chance.choice(words.COLORS[color])
    )
    return replace(scene, **{f"{slot}_color": color}), text


def _free_slot(scene: Scene) -> str | None:
    """Where another thing fits; a lone thing on another world takes the place of its moons."""
    if scene.place not in THINGS_OF or scene.place == "space":
        return None
    if scene.thing == "none":
        lone = scene.place == "alien" and scene.body == "none"
        return None if lone else "thing"
    return "other" if scene.other == "none" else None


def _added(scene: Scene, slot: str, thing: str, color: str, side: str) -> Scene | None:
    """The scene with one thing more, or None where something is in the way."""
    if slot == "other" and (thing == scene.thing or side == scene.thing_side):
        return None
    if thing in FLYING and scene.body != "none" and side == scene.body_side:
        return None
    return replace(scene, **{slot: thing, f"{slot}_color": color, f"{slot}_side": side})


def _add(chance: random.Random, scene: Scene) -> Change | None:
    slot = _free_slot(scene)
    if slot is None:
        return None
    thing = chance.choice(THINGS_OF[scene.place])
    if thing in STANDING and scene.place in ("sea", "lake") and chance.random() < 0.6:
        # It needs new ground to stand on.
        return None
    named = chance.random() < 0.75
    color = chance.choice(COLORS if named else NATURAL_COLORS[thing][:1])
    sided = chance.random() < 0.7
    side = chance.choice(SIDES) if sided else "center"
    after = _added(scene, slot, thing, color, side)
    if after is None:
        return None
    noun = chance.choice(words.THINGS[thing])
    phrase = f"a {chance.choice(words.COLORS[color])} {noun}" if named else f"a {noun}"
    text = chance.choice(ways.ADD_WAYS).format(
        thing=phrase, side=f" {chance.choice(words.SIDES[side])}" if sided else ""
    )
    return after, text


def _the(chance: random.Random, thing: str, color: str) -> str:
    adjective = f"{chance.choice(words.COLORS[color])} " if chance.random() < 0.25 else ""
    return f"the {adjective}{_noun(chance, thing)}"


def _remove(chance: random.Random, scene: Scene) -> Change | None:
    if scene.place in ("space", "alien"):
        # There, the renderer would put something in its place.
        return None
    slots = [slot for slot in _slots(scene) if getattr(scene, slot) != "planet"]
    if slots and (scene.body == "none" or chance.random() < 0.8):
        slot = chance.choice(slots)
        phrase = _the(chance, getattr(scene, slot), getattr(scene, f"{slot}_color"))
        after = replace(scene, **{slot: "none"})
    elif scene.body != "none" and scene.weather == "clear":
        phrase, after = f"the {'sun' if scene.body == 'sun' else 'moon'}", replace(scene, body="none")
    else:
        return None
    return after, chance.choice(ways.REMOVE_WAYS).format(phrase)


def _move(chance: random.Random, scene: Scene) -> Change | None:
    movable = [slot for slot in _slots(scene) if scene.style != "ink"]
    if scene.body != "none" and scene.weather in ("clear", "cloudy") and scene.place not in ("street", "alien"):
        movable += ["body", "body"]
    if not movable:
        return None
    slot = chance.choice(movable)
    field = "body_side" if slot == "body" else f"{slot}_side"
    side = chance.choice([side for side in SIDES if side != getattr(scene, field)])
    after = replace(scene, **{field: side})
    flying = [after.thing_side] * (after.thing in FLYING) + [after.other_side] * (after.other in FLYING)
    if (after.body != "none" and after.body_side in flying) or (
        after.thing != "none" and after.other != "none" and after.thing_side == after.other_side
    ):
        return None
    if slot == "body":
        phrase = f"the {'sun' if scene.body == 'sun' else 'moon'}"
    else:
        phrase = _the(chance, getattr(scene, slot), getattr(scene, f"{slot}_color"))
    text = chance.choice(ways.MOVE_WAYS).format(phrase, side=chance.choice(ways.MOVE_SIDES[side]))
    return after, text


def _replace(chance: random.Random, scene: Scene) -> Change | None:
    slots = [slot for slot in _slots(scene) if getattr(scene, slot) != "planet"]
    if not slots:
        return None
    slot = chance.choice(slots)
    old = getattr(scene, slot)
    group = FLYING if old in FLYING else STANDING
    choices = [thing for thing in group if thing in THINGS_OF[scene.place] and thing not in (scene.thing, scene.other)]
    if old == "boat" or not choices:
        return None
    new = chance.choice(choices)
    text = chance.choice(ways.REPLACE_WAYS).format(old=_noun(chance, old), new=_noun(chance, new))
    return replace(scene, **{slot: new}), text


def _light(chance: random.Random, scene: Scene) -> Change | None:
    """Put the sun or the moon into the sky."""
    if scene.body != "none" or scene.place in ("street", "abstract", "alien", "space") or scene.weather != "clear":
        return None
    body = "moon" if scene.time in ("night", "dusk") else "sun"
    if body == "moon" and chance.random() < 0.2:
        body = "crescent"
    side = chance.choice(SIDES)
    if side in [getattr(scene, f"{slot}_side") for slot in _slots(scene) if getattr(scene, slot) in FLYING]:
        return None
    text = chance.choice(ways.ADD_WAYS).format(
        thing=chance.choice(words.BODIES[body]), side=f" {chance.choice(words.SIDES[side])}"
    )
    return replace(scene, body=body, body_side=side), text


def _neon(chance: random.Random, scene: Scene) -> Change | None:
    if scene.place not in ("city", "street") or scene.neon or scene.style == "ink":
        return None
    return replace(_timed(scene, "night"), neon=True), chance.choice(ways.NEON)


def _mood(chance: random.Random, scene: Scene) -> Change | None:
    if scene.mood != "none" or scene.style == "ink":
        return None
    mood = chance.choice(tuple(ways.MOODS))
    return replace(scene, mood=mood), chance.choice(ways.MOODS[mood])


def _palette(chance: random.Random, scene: Scene) -> Change | None:
    if scene.place != "abstract" or scene.style == "ink":
        return None
    palette = chance.choice([palette for palette in words.PALETTES if palette != scene.palette])
    text = chance.choice(ways.PALETTE_WAYS).format(chance.choice(words.PALETTES[palette]))
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


# Two pictures: the base keeps its scene and takes something of the other.


def _with_two(chance: random.Random, kind: str | None) -> Edit:
    name = kind or chance.choices(list(PAIR_KINDS), [weight for _, weight in PAIR_KINDS.values()])[0]
    for _ in range(_TRIES):
        base, other = sample(chance)[0], sample(chance)[0]
        swapped = chance.random() < 0.25
        names = [chance.choice(ordinals) for ordinals in ways.ORDINALS]
        found = PAIR_KINDS[name][0](chance, base, other, *(reversed(names) if swapped else names))
        if found is not None and found.after != found.base:
            break
    else:
        base, other = Scene(place="hills"), Scene(place="sea", style="ink")
        found, swapped = _Pair(base, other, replace(base, style="ink"), "paint image 1 in the style of image 2"), False
    seed = chance.randrange(_SEEDS)
    views = [View(found.base, seed), View(found.other, chance.randrange(_SEEDS))]
    return Edit(
        name, tuple(reversed(views) if swapped else views), View(found.after, seed), _finish(chance, found.instruction)
    )


@dataclass(frozen=True)
class _Pair:
    base: Scene
    other: Scene
    after: Scene
    instruction: str


_PairKind = Callable[[random.Random, Scene, Scene, str, str], _Pair | None]


def _transfer_thing(chance: random.Random, base: Scene, other: Scene, a: str, b: str) -> _Pair | None:
    slot = _free_slot(base)
    thing = other.thing
    if slot is None or thing == "none" or other.style != base.style or thing not in THINGS_OF[base.place]:
        return None
    if thing in STANDING and base.place in ("sea", "lake"):
        return None
    sided = chance.random() < 0.25
    side = chance.choice(SIDES) if sided else other.thing_side
    after = _added(base, slot, thing, other.thing_color, side)
    if after is None:
        return None
    text = chance.choice(ways.TRANSFER_WAYS).format(noun=_noun(chance, thing), a=a, b=b)
    return _Pair(base, other, after, f"{text} {chance.choice(words.SIDES[side])}" if sided else text)


def _transfer_style(chance: random.Random, base: Scene, other: Scene, a: str, b: str) -> _Pair | None:
    if base.style != "none":
        return None
    style = draw_style(chance, words.STYLES)
    text = chance.choice(ways.STYLE_TRANSFER_WAYS).format(a=a, b=b)
    return _Pair(base, replace(other, style=style), replace(base, style=style), text)


def _transfer_time(chance: random.Random, base: Scene, other: Scene, a: str, b: str) -> _Pair | None:
    plain = ("space", "abstract", "alien")
    if base.place in plain or other.place in plain or base.time == other.time or base.neon or other.neon:
        return None
    if {base.style, other.style} != {"none"} or {base.weather, other.weather} - {"clear", "cloudy"}:
        return None
    return _Pair(base, other, _timed(base, other.time), chance.choice(ways.TIME_TRANSFER_WAYS).format(a=a, b=b))


def _transfer_weather(chance: random.Random, base: Scene, other: Scene, a: str, b: str) -> _Pair | None:
    plain = ("space", "abstract", "alien")
    if base.place in plain or other.place in plain or base.weather not in ("clear", "cloudy"):
        return None
    if {base.style, other.style} != {"none"}:
        return None
    weather = chance.choice(("storm", "fog", "snow", "rain"))
    text = chance.choice(ways.WEATHER_TRANSFER_WAYS).format(a=a, b=b)
    return _Pair(base, _weathered(other, weather), _weathered(base, weather), text)


def _transfer_land(chance: random.Random, base: Scene, other: Scene, a: str, b: str) -> _Pair | None:
    if base.place not in COLORED_LANDS or other.place not in COLORED_LANDS or {base.style, other.style} != {"none"}:
        return None
    if {base.time, other.time} & {"night", "dusk"} or {base.weather, other.weather} - {"clear", "cloudy"}:
        return None
    land = chance.choice([land for land in words.LANDS if land != base.land])
    noun = chance.choice(ways.LAND_NOUNS[base.place])
    text = chance.choice(ways.LAND_TRANSFER_WAYS).format(a=a, b=b, noun=noun)
    return _Pair(base, replace(other, land=land), replace(base, land=land), text)


def _transfer_color(chance: random.Random, base: Scene, other: Scene, a: str, b: str) -> _Pair | None:
    if "none" in (base.thing, other.thing) or base.thing_color == other.thing_color:
        return None
    if {base.style, other.style} != {"none"}:
        return None
    text = chance.choice(ways.COLOR_TRANSFER_WAYS).format(
        noun=_noun(chance, base.thing), other=_noun(chance, other.thing), a=a, b=b
    )
    return _Pair(base, other, replace(base, thing_color=other.thing_color), text)


def _within(chance: random.Random, base: Scene, other: Scene, a: str, b: str) -> _Pair | None:
    """A change of one picture; the other only stands by."""
    del b
    change = chance.choice((_style, _time, _weather, _color, _land, _remove, _add))
    found = change(chance, base)
    if found is None:
        return None
    return _Pair(base, other, found[0], chance.choice(ways.WITHIN_WAYS).format(found[1], a=a))


PAIR_KINDS: dict[str, tuple[_PairKind, float]] = {
    "transfer thing": (_transfer_thing, 28),
    "transfer style": (_transfer_style, 26),
    "transfer time": (_transfer_time, 12),
    "transfer weather": (_transfer_weather, 9),
    "transfer land": (_transfer_land, 7),
    "transfer color": (_transfer_color, 8),
    "within": (_within, 12),
}


def _finish(chance: random.Random, text: str) -> str:
    """Politeness, quality words, words without meaning, case and punctuation."""
    text = " ".join(text.split())
    if chance.random() < 0.12:
        text = chance.choice(ways.PREFIXES) + text
    way = chance.random()
    if way < 0.1:
        text += chance.choice(ways.SUFFIXES)
    elif way < 0.16:
        text += ", " + ", ".join(chance.sample(words.FLUFF, chance.randint(1, 2)))
    elif way < 0.22:
        pieces = text.split(" ")
        pieces.insert(chance.randint(0, len(pieces)), chance.choice(words.WORDS))
        text = " ".join(pieces)
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}")
    way = chance.random()
    if way < 0.35:
        text = text[:1].upper() + text[1:]
    elif way < 0.37:
        text = text.upper()
    if chance.random() < 0.2:
        text += chance.choice((".", ".", "!"))
    return text
