"""What FLUX.2-dev has and Klein has not: Mistral as its text encoder, and guidance as an input of the transformer."""
