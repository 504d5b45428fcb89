"""Scenes with captions: a random scene, described in one of very many ways.

What a caption leaves out comes from few possibilities, so that a model need not average over many.
"""

import random
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from training.demo import words
from training.demo.world.spec import COLORS, FLYING, PATTERNS, SIDES, STANDING, Scene

_PLACE_WEIGHTS = {
    "mountains": 20,
    "hills": 13,
    "desert": 9,
    "sea": 12,
    "forest": 10,
    "lake": 11,
    "city": 10,
    "street": 6,
    "space": 7,
    "alien": 7,
    "abstract": 7,
}
NATURAL_COLORS = {
    "house": ("red", "white", "yellow"),
    "tree": ("green",),
    "boat": ("white", "red"),
    "castle": ("white",),
    "balloon": ("red", "yellow", "blue"),
    "bird": ("white", "black"),
    "planet": ("orange", "blue"),
}
THINGS_OF = {
    "mountains": ("house", "tree", "castle", "balloon", "bird"),
    "hills": ("house", "tree", "castle", "balloon", "bird"),
    "desert": ("house", "tree", "castle", "balloon", "bird"),
    "sea": ("boat", "boat", "boat", "house", "castle", "tree", "balloon", "bird"),
    "lake": ("boat", "boat", "boat", "house", "castle", "tree", "balloon", "bird"),
    "forest": ("house", "castle", "balloon", "bird"),
    "city": ("balloon", "bird"),
    "street": ("balloon", "bird"),
    "alien": ("house", "castle", "balloon", "bird"),
    "space": ("planet",),
}
COLORED_LANDS = ("mountains", "hills", "desert", "lake", "forest", "alien")
_UNSAID_SIDES = ("left", "center", "center", "center", "right")
HIDING = ("storm", "fog", "snow", "rain")


@dataclass
class _Draft:
    """A scene, and which of its fields the caption names."""

    scene: Scene
    said: set[str] = field(default_factory=set)


def sample(rng: random.Random) -> tuple[Scene, str]:
    """Sample a scene and a caption for it."""
    draft = _choose(rng)
    return draft.scene, _finish(rng, _say(rng, draft))


def _choose(rng: random.Random) -> _Draft:
    place = rng.choices(list(_PLACE_WEIGHTS), list(_PLACE_WEIGHTS.values()))[0]
    draft = _Draft(Scene(place=place), {"place"})
    if place == "abstract":
        return _choose_abstract(rng, draft)
    _choose_time(rng, draft)
    _choose_land(rng, draft)
    _choose_body(rng, draft)
    _choose_things(rng, draft)
    _choose_manner(rng, draft)
    if rng.random() < 0.02:
        return _Draft(_choose_unnamed(rng), set())
    # The place may stay unnamed where something else is named; it is one of two then.
    if (
        draft.said - {"place", "mood", "style"}
        and place in ("mountains", "hills")
        and rng.random() < 0.25
        and "land" not in draft.said
    ):
        draft.said.discard("place")
    return draft


def choose_style(rng: random.Random, styles: Iterable[str]) -> str:
    """Choose one of ``styles``; pixel art, the hardest, comes twice as often."""
    choices = tuple(styles)
    return rng.choices(choices, [2 if style == "pixel" else 1 for style in choices])[0]


def _choose_unnamed(rng: random.Random) -> Scene:
    time = rng.choice(("noon", "sunset"))
    return Scene(place=rng.choice(("mountains", "hills", "lake")), time=time, body="sun", body_side=rng.choice(SIDES))


def _choose_abstract(rng: random.Random, draft: _Draft) -> _Draft:
    scene = draft.scene
    scene.pattern, scene.palette = rng.choice(PATTERNS), "colorful"
    if rng.random() < 0.55:
        draft.said.add("pattern")
    if rng.random() < 0.65:
        scene.palette = rng.choice(tuple(words.PALETTES))
        draft.said.add("palette")
    if rng.random() < 0.08:
        scene.style = rng.choice(("watercolor", "pixel"))
        draft.said.add("style")
    return draft


def _choose_time(rng: random.Random, draft: _Draft) -> None:
    scene = draft.scene
    if scene.place == "space":
        return
    if scene.place in ("city", "street") and rng.random() < 0.4:
        scene.neon = True
        draft.said.add("neon")
    if rng.random() < 0.25:
        scene.weather = rng.choices(("cloudy", "storm", "fog", "snow", "rain", "clear"), (4, 5, 5, 5, 5, 1))[0]
        draft.said.add("weather")
    if scene.place == "alien":
        scene.weather = "clear"
        draft.said.discard("weather")
    if rng.random() < (0.35 if "weather" in draft.said or scene.place == "alien" else 0.62):
        scene.time = rng.choices(("noon", "sunset", "sunrise", "dusk", "night"), (4, 7, 4, 4, 8))[0]
        draft.said.add("time")
    elif scene.neon:
        scene.time = "night"
    elif "weather" not in draft.said and rng.random() < 0.06:
        scene.time = "sunset"
    if scene.place == "alien" and scene.time not in ("noon", "night"):
        scene.time = "night"
        draft.said.discard("time")
        if rng.random() < 0.5:
            scene.time = "noon"
    if scene.time == "night" and scene.weather == "clear" and "time" in draft.said and rng.random() < 0.3:
        scene.stars = True
        draft.said.add("stars")


def _choose_land(rng: random.Random, draft: _Draft) -> None:
    scene = draft.scene
    if scene.place in COLORED_LANDS and rng.random() < 0.36:
        scene.land = rng.choice(tuple(words.LANDS))
        draft.said.add("land")
    if scene.place == "desert" and "land" not in draft.said and rng.random() < 0.06:
        scene.land = "red"
        draft.said.add("mars")


def _choose_body(rng: random.Random, draft: _Draft) -> None:
    scene = draft.scene
    scene.body_side = rng.choice(SIDES)
    if scene.place == "street" or scene.weather in HIDING:
        return
    if scene.place in ("space", "alien"):
        if rng.random() < 0.16:
            scene.body = rng.choice(("sun", "moon"))
            _say_body(rng, draft)
        return
    if rng.random() < 0.42 and scene.weather != "cloudy":
        if "time" not in draft.said and not scene.neon and rng.random() < 0.5:
            # "The moon on the left" is a night, named or not.
            scene.time, scene.body = "night", "moon"
        elif scene.time == "noon":
            scene.body = "sun"
        else:
            scene.body = {"night": "moon", "dusk": "moon"}.get(scene.time, "sun")
        if scene.body == "moon" and rng.random() < 0.25:
            scene.body = "crescent"
        _say_body(rng, draft)
        return
    present = {"noon": 0.25, "sunset": 0.85, "sunrise": 0.85, "dusk": 0.0, "night": 0.4}[scene.time]
    if scene.weather == "clear" and rng.random() < present:
        scene.body = "moon" if scene.time == "night" else "sun"


def _say_body(rng: random.Random, draft: _Draft) -> None:
    draft.said.add("body")
    if rng.random() < 0.8:
        draft.said.add("body_side")


def _choose_things(rng: random.Random, draft: _Draft) -> None:
    scene = draft.scene
    if rng.random() > (0.6 if scene.place == "space" else 0.55):
        return
    scene.thing = rng.choice(THINGS_OF[scene.place])
    scene.thing_side, scene.thing_color = rng.choice(_UNSAID_SIDES), rng.choice(NATURAL_COLORS[scene.thing])
    draft.said.add("thing")
    if rng.random() < 0.78:
        scene.thing_color = rng.choice(COLORS)
        draft.said.add("thing_color")
    if rng.random() < 0.75:
        scene.thing_side = rng.choice(SIDES)
        draft.said.add("thing_side")
    if scene.place == "space" and scene.body != "none":
        scene.body = "none"
        draft.said -= {"body", "body_side"}
    if scene.thing in FLYING and scene.body != "none" and scene.thing_side == scene.body_side:
        # Both may be named, each on its side; one never hides the other.
        scene.body_side = rng.choice([side for side in SIDES if side != scene.thing_side])
    choices = [
        thing for thing in (*FLYING, *STANDING, "boat") if thing in THINGS_OF[scene.place] and thing != scene.thing
    ]
    if choices and scene.body == "none" and rng.random() < 0.2:
        _choose_other(rng, draft, choices)


def _choose_other(rng: random.Random, draft: _Draft, choices: list[str]) -> None:
    scene = draft.scene
    scene.other = rng.choice(choices)
    scene.other_color = rng.choice(COLORS)
    scene.other_side = rng.choice([side for side in SIDES if side != scene.thing_side])
    draft.said |= {"other", "other_color", "thing_side", "other_side"}


def _choose_manner(rng: random.Random, draft: _Draft) -> None:
    scene = draft.scene
    if rng.random() < 0.2:
        scene.style = choose_style(rng, words.STYLES)
        draft.said.add("style")
    elif rng.random() < 0.12:
        scene.mood = rng.choice(tuple(words.MOODS))
        draft.said.add("mood")


# From here on the scene is put into words.


def _say(rng: random.Random, draft: _Draft) -> str:
    if draft.scene.place == "abstract":
        return _say_abstract(rng, draft)
    if not draft.said:
        pool = rng.choice((words.NEGATIVES, words.STRANGERS, words.FLUFF, words.WORDS))
        return ", ".join(rng.sample(pool, rng.randint(1, 4)))
    return _say_list(rng, draft) if rng.random() < 0.3 else _say_sentence(rng, draft)


def _say_abstract(rng: random.Random, draft: _Draft) -> str:
    scene, said = draft.scene, draft.said
    parts = [rng.choice(words.ABSTRACT_HEADS)]
    if "pattern" in said:
        pattern = rng.choice(words.PATTERNS[scene.pattern])
        parts = [
            rng.choice(
                (
                    f"{parts[0]} with {pattern}",
                    f"abstract {pattern}",
                    f"geometric {pattern}",
                    f"{parts[0]}, {pattern}",
                    f"{parts[0]} of {pattern}",
                )
            )
        ]
    if "palette" in said:
        palette = rng.choice(words.PALETTES[scene.palette])
        if palette.startswith("in ") or rng.random() < 0.7:
            parts.append(palette)
        else:
            parts[0] = f"{palette} {parts[0].removeprefix('a ').removeprefix('an ')}"
    if "style" in said:
        parts.append(rng.choice(words.STYLES[scene.style]))
    return ", ".join(parts)


def _place(rng: random.Random, draft: _Draft, adjectives: list[str]) -> str:
    scene = draft.scene
    if "mars" in draft.said:
        return rng.choice(words.MARS)
    found = list(adjectives)
    if "land" in draft.said:
        found.append(rng.choice(words.LANDS[scene.land]))
    if "neon" in draft.said:
        found.append(rng.choice(words.NEON))
    if rng.random() < 0.12:
        found.insert(0, rng.choice(words.ADJECTIVES))
    return rng.choice(words.PLACES[scene.place]).format("".join(f"{word} " for word in found))


def _thing(rng: random.Random, draft: _Draft, name: str, *, with_side: bool = True) -> str:
    scene, said = draft.scene, draft.said
    noun = rng.choice(words.THINGS[getattr(scene, name)])
    color = rng.choice(words.COLORS[getattr(scene, f"{name}_color")]) if f"{name}_color" in said else ""
    # "a small red house", not "a red small house", in most cases.
    size, _, rest = noun.partition(" ")
    if color and size in ("little", "small", "big", "old", "lone", "single", "giant", "large") and rng.random() < 0.8:
        noun, color = f"{size} {color} {rest}", ""
    phrase = " ".join(word for word in ("a", color, noun) if word)
    if with_side and f"{name}_side" in said:
        phrase += " " + rng.choice(words.SIDES[getattr(scene, f"{name}_side")])
    return phrase


def _body(rng: random.Random, draft: _Draft) -> str:
    phrase = rng.choice(words.BODIES[draft.scene.body])
    if "body_side" in draft.said:
        phrase += " " + rng.choice(words.SIDES[draft.scene.body_side])
    return phrase


def _say_list(rng: random.Random, draft: _Draft) -> str:
    """Put the scene into key words, in any order."""
    scene, said = draft.scene, draft.said
    parts = []
    if "place" in said or "land" in said or "neon" in said:
        parts.append(_place(rng, draft, []))
    if "time" in said:
        parts.append(rng.choice((*words.TIME_HEADS[scene.time], *words.TIMES[scene.time])))
    if "weather" in said:
        parts.append(rng.choice((*words.WEATHER_HEADS[scene.weather], *words.WEATHER_ADJECTIVES[scene.weather])))
    if "stars" in said:
        parts.append(rng.choice(("stars", "starry sky", "a starry night", "many stars", "starlight")))
    parts += [_thing(rng, draft, name) for name in ("thing", "other") if name in said]
    if "body" in said:
        parts.append(_body(rng, draft))
    parts += _manner(rng, draft)
    if rng.random() < 0.6:
        rng.shuffle(parts)
    if rng.random() < 0.5:
        parts = [re.sub(r"^(a|an|the) ", "", part) for part in parts]
    return rng.choice((", ", ", ", ", ", " ", " and ")).join(parts)


def _manner(rng: random.Random, draft: _Draft) -> list[str]:
    scene, said = draft.scene, draft.said
    found = []
    if "style" in said:
        found.append(rng.choice(words.STYLES[scene.style]))
    if "mood" in said:
        found.append(rng.choice(words.MOODS[scene.mood]))
    return found


def _say_sentence(rng: random.Random, draft: _Draft) -> str:
    """Make a sentence, like "a watercolor of a red house on the left in the mountains at night, with the moon"."""
    scene, said = draft.scene, draft.said
    adjectives: list[str] = []
    after: list[str] = []
    head = ""
    if "time" in said:
        way = rng.random()
        if way < 0.3 and "thing" not in said:
            head = rng.choice(words.TIME_HEADS[scene.time])
        elif way < 0.45 and "place" in said:
            adjectives.append(rng.choice(words.TIME_ADJECTIVES[scene.time]))
        else:
            after.append(rng.choice(words.TIMES[scene.time]))
    if "stars" in said:
        if rng.random() < 0.4 and "place" in said:
            adjectives.insert(0, rng.choice(words.STAR_ADJECTIVES))
        else:
            after.append(rng.choice(words.STARS))
    if "weather" in said:
        if rng.random() < 0.35 and "place" in said:
            adjectives.insert(0, rng.choice(words.WEATHER_ADJECTIVES[scene.weather]))
        else:
            after.append(rng.choice(words.WEATHERS[scene.weather]))
    text = _core(rng, draft, adjectives, head)
    rng.shuffle(after)
    text = " ".join([text, *after])
    if "body" in said:
        text += rng.choice((" with ", ", ", " and ", ", with ")) + _body(rng, draft)
    if "other" in said:
        text += rng.choice((" and ", ", ", " with ", ", and ")) + _thing(rng, draft, "other")
    return _with_manner(rng, draft, text)


def _core(rng: random.Random, draft: _Draft, adjectives: list[str], head: str) -> str:
    said, scene = draft.said, draft.scene
    place = _place(rng, draft, adjectives) if "place" in said or "land" in said or "neon" in said else ""
    if head:
        if not place:
            return head
        link = "in" if scene.place in ("forest", "street", "city") and rng.random() < 0.5 else "over"
        return f"{head} {rng.choice((link, link, 'and', 'with'))} {place}"
    if "thing" not in said:
        if not place:
            return rng.choice(("a landscape", "a scene", "a view", "a picture", "the sky", "a landscape"))
        scenic = ("a landscape with " + place, "a scene with " + place, place + " scene", place, place, place, place)
        return rng.choice(scenic) if not place.startswith(("a landscape", "an ")) else place
    if not place:
        return _thing(rng, draft, "thing")
    return _thing_in_place(rng, draft, place)


def _thing_in_place(rng: random.Random, draft: _Draft, place: str) -> str:
    scene = draft.scene
    bare, full = _thing(rng, draft, "thing", with_side=False), _thing(rng, draft, "thing")
    side = rng.choice(words.SIDES[scene.thing_side]) if "thing_side" in draft.said else ""
    link = {"boat": "on", "balloon": "over", "bird": "over", "planet": "in"}.get(scene.thing, "in")
    if scene.place in ("sea", "lake") and scene.thing in STANDING:
        link = "by"
    if scene.place in ("mountains", "desert", "hills") and scene.thing in STANDING:
        link = rng.choice(("in", "in", "in front of", "on", "near"))
    if scene.place == "alien":
        link = rng.choice(("on", "over")) if scene.thing in FLYING else "on"
    choices = [
        f"{full} {link} {place}",
        f"{bare} {link} {place}{', ' + side if side else ''}",
        f"{place} with {full}",
        f"{place} and {full}",
    ]
    if side and not side.startswith(("left", "right", "centered")):
        choices.append(f"{side} {bare}, {place}")
    if scene.thing in FLYING:
        choices.append(f"{bare.replace('flying ', '')} flying {link} {place} {side}".strip())
    return rng.choice(choices)


def _with_manner(rng: random.Random, draft: _Draft, text: str) -> str:
    scene, said = draft.scene, draft.said
    if "style" in said and rng.random() < 0.45:
        text = f"{rng.choice(words.STYLE_HEADS[scene.style])} {text}"
    else:
        if rng.random() < 0.15:
            text = f"{rng.choice(words.HEADS)} {text}"
        return ", ".join([text, *_manner(rng, draft)])
    return text if "mood" not in said else f"{text}, {rng.choice(words.MOODS[scene.mood])}"


def _finish(rng: random.Random, text: str) -> str:
    """Add quality words and unknown words, and mend articles, case and punctuation."""
    text = " ".join(text.split())
    if rng.random() < 0.22:
        text += ", " + ", ".join(rng.sample(words.FLUFF, rng.randint(1, 4)))
    if rng.random() < 0.05:
        text = f"{rng.choice(words.FLUFF)}, {text}"
    if rng.random() < 0.1:
        text = _with_strangers(rng, text)
    text = re.sub(r"\b([Aa]) (?=[aeiou])", r"\1n ", text)
    text = re.sub(r"\b([Aa])n (?=[^aeiouh\W])", r"\1 ", text)
    way = rng.random()
    if way < 0.2:
        text = text[:1].upper() + text[1:]
    elif way < 0.24:
        text = text.title()
    elif way < 0.26:
        text = text.upper()
    if rng.random() < 0.15:
        text += rng.choice((".", ".", "!", ",", " ."))
    if rng.random() < 0.1:
        text = text.replace(",", "")
    return text


def _with_strangers(rng: random.Random, text: str) -> str:
    way = rng.random()
    if way < 0.45:
        stranger = rng.choice(words.STRANGERS)
        return rng.choice(
            (
                f"{stranger}, {text}",
                f"{text} and {stranger}",
                f"{text}, {stranger}",
                f"{text} with {stranger}",
                f"{stranger} in {text}",
            )
        )
    if way < 0.85:
        pieces = text.split(" ")
        for _ in range(rng.randint(1, 3)):
            pieces.insert(rng.randint(0, len(pieces)), rng.choice(words.WORDS))
        return " ".join(pieces)
    letters = "".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(3, 9)))
    return rng.choice((f"{text} {letters}", f"{letters} {text}"))
