"""Write the words that the model learnt a meaning for, from what its captions and its edits are made of.

python -m training.demo.vocabulary mflux_api/catalog/demo_words.txt
"""

import argparse
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import ModuleType

from training.demo import edit_words, words
from training.demo.world import spec

FILE = Path(__file__).parents[2] / "mflux_api" / "catalog" / "demo_words.txt"
# Not the name of a place for another word, as in "{noun}".
_WORD = re.compile(r"[a-z]{2,}(?![a-z]*})")
# In captions they are noise, or what a negative prompt names.
_WITHOUT_MEANING = ("STRANGERS", "WORDS", "NEGATIVES")
# What captions put between their phrases, and what people write around a wish. The model may do without them.
_BETWEEN = """
    about above across against all along also among an and any are around art artwork as at away background be been
    behind below beneath beside between both but by can canvas close color colored colorful colors colour coloured
    colours coming could create depict depicting distance distant do down draw drawing drawn each edge every few
    fill filled for foreground form from front full generate give given go going had has have having here how if
    illustration image images in inside into is it its just kind landscape large let like little look looking
    looks lots made make making many may me middle more most much my near next no not nothing of off on one only
    onto or other our out outside over overlooking page paint painted painting paintings part photo photograph
    photography picture pictures piece place placed please quiet rather render rendered rendering scene scenery
    scenes see seen several should show showing shown shows side single sitting small so some something standing
    style such surrounded than that the their them then there these they thing things this those through to
    together top toward towards two under until up upon us use used using very view views want wants was way we
    were what when where which while who whole wide will with within without world would yet you your
"""


def phrases(value: object) -> Iterator[str]:
    """Yield the texts in a text, a mapping, or anything that holds some."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, held in value.items():
            yield from phrases(key)
            yield from phrases(held)
    elif isinstance(value, Iterable):
        for held in value:
            yield from phrases(held)


def vocabulary() -> list[str]:
    """Return the words, in lower case and sorted."""
    texts = [_BETWEEN]
    for module in (words, edit_words, spec):
        texts += _of_module(module)
    # "no people" is among the words of quality.
    return sorted({word for text in texts for word in _WORD.findall(text.lower())} - {"people"})


def _of_module(module: ModuleType) -> Iterator[str]:
    for name, value in vars(module).items():
        if name.lstrip("_").isupper() and name not in _WITHOUT_MEANING:
            yield from phrases(value)


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", default=FILE)
    parser.parse_args().file.write_text("\n".join(vocabulary()) + "\n", "utf-8")


if __name__ == "__main__":
    main()
