"""What FLUX.2-dev has and Klein does not: Mistral as its text encoder, and guidance as an input of the transformer.

The transformer and the VAE are those of Klein and stay in ``weights``.
"""
