"""The actors and what they say to each other: one module or folder an actor, and none knows another's class."""
