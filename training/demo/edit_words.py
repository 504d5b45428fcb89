"""What instructions are made of: ways to ask for a change of one image, or of one image by another."""

STYLE_NOUNS: dict[str, tuple[str, ...]] = {
    "watercolor": (
        "a watercolor painting",
        "a watercolor",
        "a watercolour painting",
        "an aquarelle",
        "a watercolor picture",
        "watercolor",
    ),
    "pixel": ("pixel art", "8-bit pixel art", "a pixel art picture", "retro pixel art", "16-bit pixel art", "pixels"),
    "ink": (
        "an ink drawing",
        "a pen and ink drawing",
        "an ink sketch",
        "a black and white ink drawing",
        "an ink wash painting",
        "a black and white drawing",
    ),
    "poster": ("a poster", "a travel poster", "a vintage poster", "a screen print", "flat poster art", "poster art"),
}
STYLE_WAYS = (
    "turn this into {}",
    "turn this into {}",
    "turn it into {}",
    "turn the picture into {}",
    "turn this image into {}",
    "make this {}",
    "make it {}",
    "make it look like {}",
    "make this image look like {}",
    "convert this to {}",
    "convert the picture into {}",
    "transform this into {}",
    "transform the image into {}",
    "repaint this as {}",
    "redraw it as {}",
    "paint this as {}",
    "change the style to {}",
    "change this to {}",
    "the same scene as {}",
    "the same picture as {}",
    "this picture as {}",
    "as {}",
    "render this as {}",
    "show this as {}",
    "restyle this as {}",
    "{}",
)
STYLE_MANNERS = (
    "{}",
    "make it {}",
    "this {}",
    "the same scene, {}",
    "redo this {}",
    "the same picture {}",
    "paint it {}",
)
UNSTYLE = (
    "remove the {style} effect",
    "make it a normal picture",
    "turn this {style} into a normal picture",
    "undo the {style} style",
    "make it a photo",
    "turn it into a photo",
    "without the {style} style",
    "make this {style} picture realistic",
    "turn this into a realistic picture",
)

TIMES: dict[str, tuple[str, ...]] = {
    "noon": ("day", "daytime", "noon", "midday", "a bright day", "daylight", "a clear day"),
    "sunset": ("sunset", "a sunset", "evening", "a golden evening", "the golden hour", "sundown"),
    "sunrise": ("sunrise", "a sunrise", "dawn", "early morning", "morning", "daybreak"),
    "dusk": ("dusk", "twilight", "the blue hour", "late evening", "nightfall"),
    "night": ("night", "night", "nighttime", "a dark night", "midnight", "night time"),
}
TIME_WAYS = (
    "make it {}",
    "make it {}",
    "make this {}",
    "turn it into {}",
    "turn this into {}",
    "turn it to {}",
    "change it to {}",
    "change the time to {}",
    "change the time of day to {}",
    "set the time to {}",
    "let it be {}",
    "switch to {}",
    "the same scene, {}",
    "the same place but {}",
    "the same place, {}",
    "show it as {}",
    "{}",
)
# With adverbs: "at night".
TIME_MANNERS = (
    "the same scene {}",
    "the same place {}",
    "the same picture {}",
    "this scene {}",
    "show this {}",
    "show the same place {}",
    "paint it {}",
    "what does it look like {}",
    "this {}",
    "it is {}",
    "{}",
)
STARRY = (
    "make it a starry night",
    "a starry night",
    "turn it into a starry night",
    "night with many stars",
    "make it night with stars",
)

WEATHERS: dict[str, tuple[str, ...]] = {
    "cloudy": ("add clouds", "make it cloudy", "put clouds in the sky", "fill the sky with clouds", "add some clouds"),
    "storm": (
        "add a storm",
        "make it stormy",
        "add lightning",
        "let a storm come",
        "add a thunderstorm",
        "turn it into a storm",
        "add dark clouds and lightning",
        "a stormy version",
    ),
    "fog": (
        "add fog",
        "make it foggy",
        "fill it with mist",
        "add mist",
        "make it misty",
        "let fog roll in",
        "add some fog",
        "cover it in fog",
        "put it in thick fog",
    ),
    "snow": (
        "add snow",
        "add snow",
        "make it snow",
        "let it snow",
        "make it snowy",
        "add falling snow",
        "make it winter",
        "turn it into winter",
        "cover everything in snow",
        "add some snow",
        "make this a winter scene",
        "put snow into the picture",
        "turn summer into winter",
        "a winter version",
    ),
    "rain": (
        "add rain",
        "make it rain",
        "let it rain",
        "make it rainy",
        "add some rain",
        "make it a rainy day",
        "add heavy rain",
        "a rainy version",
    ),
}
WEATHER_WAYS = ("change the weather to {}", "the same scene with {}", "the same place in {}", "with {}", "{}", "in {}")
WEATHER_NOUNS: dict[str, tuple[str, ...]] = {
    "cloudy": ("clouds", "cloud"),
    "storm": ("storm", "thunderstorm", "lightning"),
    "fog": ("fog", "mist", "haze"),
    "snow": ("snow", "snowfall", "snowflakes"),
    "rain": ("rain", "drizzle"),
}
CLEARING = (
    "remove the {}",
    "remove the {}",
    "take away the {}",
    "stop the {}",
    "without the {}",
    "no {}",
    "get rid of the {}",
    "clear the sky",
    "clear weather",
    "make the weather clear",
    "make the sky clear",
    "change the weather to clear",
)

LAND_NOUNS: dict[str, tuple[str, ...]] = {
    "mountains": ("mountains", "mountains", "peaks", "land", "rocks", "mountain range"),
    "hills": ("hills", "hills", "meadows", "fields", "grass", "land"),
    "desert": ("dunes", "sand", "desert", "land"),
    "lake": ("mountains", "mountains", "peaks", "land"),
    "forest": ("forest", "trees", "woods", "land"),
    "alien": ("ground", "land", "rocks", "spires"),
}
LAND_WAYS = (
    "make the {noun} {land}",
    "make the {noun} {land}",
    "turn the {noun} {land}",
    "paint the {noun} {land}",
    "color the {noun} {land}",
    "change the {noun} to {land}",
    "change the color of the {noun} to {land}",
    "the same scene with {land} {noun}",
    "with {land} {noun}",
    "{land} {noun}",
    "give it {land} {noun}",
)
SEASONS: dict[str, tuple[str, ...]] = {
    "golden": ("make it autumn", "turn it into autumn", "autumn", "give it autumn colors", "make it fall", "in autumn"),
    "green": ("make it spring", "make it summer", "turn it into spring", "in summer", "in spring", "a summer version"),
}

COLOR_WAYS = (
    "make the {noun} {color}",
    "make the {noun} {color}",
    "paint the {noun} {color}",
    "turn the {noun} {color}",
    "color the {noun} {color}",
    "change the color of the {noun} to {color}",
    "change the {noun} to {color}",
    "give the {noun} a {color} color",
    "the {noun} should be {color}",
    "a {color} {noun} instead",
    "the same with a {color} {noun}",
    "make it a {color} {noun}",
)
ADD_WAYS = (
    "add {thing}{side}",
    "add {thing}{side}",
    "put {thing}{side}",
    "place {thing}{side}",
    "insert {thing}{side}",
    "draw {thing}{side}",
    "paint {thing}{side}",
    "with {thing}{side}",
    "the same scene with {thing}{side}",
    "let there be {thing}{side}",
    "include {thing}{side}",
    "put {thing} into the picture{side}",
    "i want {thing}{side}",
)
REMOVE_WAYS = (
    "remove {}",
    "remove {}",
    "take away {}",
    "erase {}",
    "delete {}",
    "without {}",
    "the same scene without {}",
    "get rid of {}",
    "take {} out",
    "make {} disappear",
    "there should be no {}",
)
MOVE_WAYS = (
    "move {} {side}",
    "move {} {side}",
    "put {} {side}",
    "place {} {side}",
    "shift {} {side}",
    "bring {} {side}",
    "{} should be {side}",
)
MOVE_SIDES: dict[str, tuple[str, ...]] = {
    "left": ("to the left", "to the left side", "on the left", "left", "to the left-hand side"),
    "center": ("to the center", "to the middle", "in the middle", "in the center", "to the centre"),
    "right": ("to the right", "to the right side", "on the right", "right", "to the right-hand side"),
}
REPLACE_WAYS = (
    "replace the {old} with a {new}",
    "replace the {old} by a {new}",
    "turn the {old} into a {new}",
    "change the {old} into a {new}",
    "swap the {old} for a {new}",
    "make the {old} a {new}",
    "a {new} instead of the {old}",
)
NEON = (
    "make it futuristic",
    "make it cyberpunk",
    "turn it into a cyberpunk city",
    "add neon lights",
    "turn it into a city of the future",
    "make it neon",
    "cyberpunk style",
    "a futuristic version",
    "make this a neon city",
)
MOODS: dict[str, tuple[str, ...]] = {
    "vibrant": (
        "make the colors more vibrant",
        "more vivid colors",
        "make it more colorful",
        "increase the saturation",
        "use vibrant colors",
        "make it vibrant",
        "stronger colors",
    ),
    "pastel": (
        "use pastel colors",
        "make the colors softer",
        "make it pastel",
        "soft pastel colors",
        "mute the colors",
        "paler colors",
        "turn the colors to pastel",
    ),
}
PALETTE_WAYS = (
    "make it {}",
    "change the colors: {}",
    "use other colors: {}",
    "the same pattern, {}",
    "turn this {}",
    "{}",
)

# Two images, by their order.
ORDINALS = (
    (
        "the first picture",
        "the first image",
        "image 1",
        "picture 1",
        "the first one",
        "the first photo",
        "the first scene",
    ),
    (
        "the second picture",
        "the second image",
        "image 2",
        "picture 2",
        "the second one",
        "the second photo",
        "the second scene",
    ),
)
TRANSFER_WAYS = (
    "put the {noun} of {b} into {a}",
    "put the {noun} of {b} into {a}",
    "put the {noun} from {b} into {a}",
    "add the {noun} of {b} to {a}",
    "add the {noun} from {b} to {a}",
    "take the {noun} from {b} and put it into {a}",
    "{a} with the {noun} of {b}",
    "place the {noun} from {b} in {a}",
    "copy the {noun} of {b} into {a}",
    "insert the {noun} of {b} into {a}",
    "combine {a} with the {noun} of {b}",
)
STYLE_TRANSFER_WAYS = (
    "paint {a} in the style of {b}",
    "paint {a} in the style of {b}",
    "{a} in the style of {b}",
    "apply the style of {b} to {a}",
    "use the style of {b} for {a}",
    "turn {a} into the style of {b}",
    "make {a} look painted like {b}",
    "redraw {a} like {b}",
    "transfer the style of {b} to {a}",
    "give {a} the style of {b}",
)
TIME_TRANSFER_WAYS = (
    "make {a} the same time of day as {b}",
    "give {a} the light of {b}",
    "use the lighting of {b} in {a}",
    "{a} at the time of day of {b}",
    "change the time of {a} to that of {b}",
    "light {a} like {b}",
    "put the sky of {b} into {a}",
)
WEATHER_TRANSFER_WAYS = (
    "give {a} the weather of {b}",
    "use the weather of {b} in {a}",
    "{a} with the weather of {b}",
    "put the weather of {b} into {a}",
    "make the weather of {a} like in {b}",
)
LAND_TRANSFER_WAYS = (
    "give the land of {a} the color of the land of {b}",
    "color the land of {a} like that of {b}",
    "use the land colors of {b} in {a}",
    "{a} with the land color of {b}",
    "give the {noun} of {a} the color of {b}",
)
COLOR_TRANSFER_WAYS = (
    "paint the {noun} of {a} in the color of the {other} of {b}",
    "give the {noun} of {a} the color of the {other} in {b}",
    "make the {noun} in {a} the color of the {other} in {b}",
    "color the {noun} of {a} like the {other} of {b}",
)
WITHIN_WAYS = ("in {a}: {}", "{a}: {}", "{a}, {}", "{}, in {a}", "take {a} and {}", "use {a}, {}", "with {a}: {}")

PREFIXES = ("please ", "please ", "can you ", "could you ", "now ", "i want you to ", "edit: ", "just ")
SUFFIXES = (
    ", please",
    " please",
    ", keep everything else the same",
    ", keep the rest",
    " but keep the layout",
    ", leave the rest as it is",
    ", same composition",
    " and change nothing else",
    ", everything else unchanged",
)
