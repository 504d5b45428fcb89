"""This disk: the job store, images, init images, checkpoints and LoRAs, and the lock on the state directory.

Nothing here knows of actors or HTTP, and nothing is downloaded here.
"""
