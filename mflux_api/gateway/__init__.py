"""What HTTP routes and embedding programs may ask of the actors. Nothing here decides, and nothing here is HTTP."""
