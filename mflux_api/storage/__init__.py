"""Where jobs and images are kept. Nothing here knows of actors or HTTP."""
