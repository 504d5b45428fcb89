"""The recipe of the embedded demo model: a procedural world, its captions, training, export and measures."""
